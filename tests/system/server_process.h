// The real binary as a child process, for tests that kill it, fill its disk or turn its clock.
#ifndef BACKSTORY_TESTS_SYSTEM_SERVER_PROCESS_H_
#define BACKSTORY_TESTS_SYSTEM_SERVER_PROCESS_H_

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace backstory {

// A directory that is deleted with the object.
class ScratchDir {
 public:
  ScratchDir();
  ~ScratchDir();
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Path of build/<preset>/bin/backstory beside the running test.
std::string BinaryPath();

struct ExitState {
  bool exited = false;  // by itself, with `code`; otherwise killed by `signal`
  int code = 0;
  int signal = 0;
};

// Runs the binary to its end; output of both streams appended to `output` if given.
ExitState RunBinary(const std::vector<std::string>& arguments, std::string* output = nullptr);

class ServerProcess {
 public:
  struct Options {
    std::filesystem::path store;
    std::filesystem::path models;        // empty: one untrained model, grab-tiny
    std::vector<std::string> arguments;  // appended
    std::map<std::string, std::string> environment;
  };
  explicit ServerProcess(Options options);
  ~ServerProcess();  // kills what still runs

  // Of the next Start, on top of this process's own.
  void SetEnvironment(std::map<std::string, std::string> environment) { options_.environment = std::move(environment); }
  // Forks, and waits until the server says that it is ready or ends. False: log() says why.
  bool Start();
  void Signal(int signal);
  ExitState Wait();  // also of a process whose end Start saw
  void Kill();       // SIGKILL and Wait
  bool running() const { return pid_ > 0; }
  const std::filesystem::path& models() const { return options_.models; }
  int port() const { return port_; }
  int metrics_port() const { return metrics_port_; }
  std::string address() const;
  std::string admin_address() const;
  // A channel of its own to the current incarnation.
  std::shared_ptr<grpc::Channel> Connect() const;
  std::shared_ptr<grpc::Channel> ConnectAdmin() const;
  std::string Scrape() const;  // of the metrics endpoint; empty if it does not answer
  std::string log() const;     // standard error of all incarnations

 private:
  Options options_;
  ScratchDir scratch_;
  pid_t pid_ = -1;
  ExitState ended_;  // of a process whose end Start saw
  int port_ = 0, admin_port_ = 0, metrics_port_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_TESTS_SYSTEM_SERVER_PROCESS_H_
