#include "tests/system/server_process.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

namespace backstory {
namespace {

constexpr auto kStartLimit = std::chrono::seconds(60);

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Forks and becomes the binary, both streams appended to `log`. Everything that allocates happens before the fork: the
// parent has threads (gRPC's), so the child may only make async-signal-safe calls.
pid_t Spawn(const std::vector<std::string>& arguments, const std::map<std::string, std::string>& environment,
            const std::filesystem::path& log) {
  std::vector<char*> argv, envp;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  std::vector<std::string> assignments;
  for (const auto& [name, value] : environment) assignments.push_back(name + "=" + value);
  for (char** inherited = environ; *inherited != nullptr; ++inherited) {
    const std::string name = std::string(*inherited).substr(0, std::string(*inherited).find('='));
    if (!environment.contains(name)) envp.push_back(*inherited);
  }
  for (std::string& assignment : assignments) envp.push_back(assignment.data());
  envp.push_back(nullptr);
  const pid_t pid = fork();
  if (pid != 0) return pid;
  const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  dup2(fd, STDOUT_FILENO);
  dup2(fd, STDERR_FILENO);
  execve(argv[0], argv.data(), envp.data());
  _exit(127);
}

std::shared_ptr<grpc::Channel> ConnectTo(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

ExitState StateOf(int status) {
  if (WIFEXITED(status)) return {true, WEXITSTATUS(status), 0};
  return {false, 0, WTERMSIG(status)};
}

}  // namespace

ScratchDir::ScratchDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "backstory-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) std::abort();
  path_ = pattern;
}

ScratchDir::~ScratchDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string BinaryPath() {
  // Tests lie in <build>/tests, the binary in <build>/bin.
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin" / "backstory").string();
}

ExitState RunBinary(const std::vector<std::string>& arguments, std::string* output) {
  ScratchDir scratch;
  const std::filesystem::path log = scratch.path() / "output";
  std::vector<std::string> argv{BinaryPath()};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const pid_t pid = Spawn(argv, {}, log);
  int status = 0;
  waitpid(pid, &status, 0);
  if (output != nullptr) *output += ReadFile(log);
  return StateOf(status);
}

ServerProcess::ServerProcess(Options options) : options_(std::move(options)) {
  if (options_.models.empty()) {
    options_.models = scratch_.path() / "models";
    RunBinary(
        {"model", "init-random", "grab-tiny", "--seed", "5", "--out", (options_.models / "grab-tiny" / "1").string()});
  }
}

ServerProcess::~ServerProcess() { Kill(); }

bool ServerProcess::Start() {
  const std::filesystem::path port_file = scratch_.path() / "port";
  std::filesystem::remove(port_file);
  std::vector<std::string> argv{
      BinaryPath(), "serve", "--store",     options_.store.string(), "--models", options_.models.string(),
      "--port",     "0",     "--port-file", port_file.string()};
  argv.insert(argv.end(), options_.arguments.begin(), options_.arguments.end());
  pid_ = Spawn(argv, options_.environment, scratch_.path() / "log");
  const auto limit = std::chrono::steady_clock::now() + kStartLimit;
  while (std::chrono::steady_clock::now() < limit) {
    std::istringstream text(ReadFile(port_file));
    if (text >> port_ >> admin_port_ >> metrics_port_) return true;
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      ended_ = StateOf(status);
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  Kill();
  return false;
}

void ServerProcess::Signal(int signal) {
  if (pid_ > 0) kill(pid_, signal);
}

ExitState ServerProcess::Wait() {
  if (pid_ <= 0) return std::exchange(ended_, {});
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return StateOf(status);
}

void ServerProcess::Kill() {
  Signal(SIGKILL);
  Wait();
}

std::string ServerProcess::admin_address() const { return "127.0.0.1:" + std::to_string(admin_port_); }

std::string ServerProcess::address() const { return "127.0.0.1:" + std::to_string(port_); }

std::shared_ptr<grpc::Channel> ServerProcess::Connect() const { return ConnectTo(address()); }

std::shared_ptr<grpc::Channel> ServerProcess::ConnectAdmin() const { return ConnectTo(admin_address()); }

std::string ServerProcess::Scrape() const {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in peer{};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(static_cast<uint16_t>(metrics_port_));
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string reply;
  const std::string ask = "GET /metrics HTTP/1.0\r\n\r\n";
  if (connect(fd, reinterpret_cast<const sockaddr*>(&peer), sizeof(peer)) == 0 &&
      write(fd, ask.data(), ask.size()) == static_cast<ssize_t>(ask.size())) {
    char bytes[4096];
    for (ssize_t n = 0; (n = read(fd, bytes, sizeof(bytes))) > 0;) reply.append(bytes, static_cast<size_t>(n));
  }
  close(fd);
  return reply;
}

std::string ServerProcess::log() const { return ReadFile(scratch_.path() / "log"); }

}  // namespace backstory
