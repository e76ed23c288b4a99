// TLS handshakes with certificates made for the test, certificate rotation, and who may call which admin method (R26).
#include <gmock/gmock.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <thread>

#include "tests/serving/rpc/fixture.h"

namespace backstory::testing {
namespace {

using ::testing::HasSubstr;
using grpc::StatusCode;

// A CA, and certificates it signs; all in one directory.
class Authority {
 public:
  Authority(const TempDir& dir, const std::string& name) : dir_(dir.path()), name_(name) {
    Run("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=" + name + " -keyout " +
        File(name + ".key") + " -out " + File(name + ".pem"));
  }
  void Issue(const std::string& file, const std::string& common_name, int days = 2) const {
    std::ofstream(File(file + ".ext")) << "subjectAltName=DNS:localhost,IP:127.0.0.1\n";
    Run("req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=" + common_name + " -keyout " +
        File(file + ".key") + " -out " + File(file + ".csr"));
    Run("x509 -req -in " + File(file + ".csr") + " -CA " + File(name_ + ".pem") + " -CAkey " + File(name_ + ".key") +
        " -CAcreateserial -days " + std::to_string(days) + " -extfile " + File(file + ".ext") + " -out " +
        File(file + ".pem"));
  }
  std::string File(const std::string& file) const { return dir_ + "/" + file; }
  std::string Pem(const std::string& file) const { return ReadAll(File(file)); }

 private:
  void Run(const std::string& arguments) const {
    const std::string command = "openssl " + arguments + " >" + dir_ + "/openssl.log 2>&1";
    ASSERT_EQ(std::system(command.c_str()), 0) << command << "\n" << ReadAll(dir_ + "/openssl.log");
  }
  const std::string dir_, name_;
};

std::shared_ptr<grpc::ChannelCredentials> Tls(const Authority& trusted, const Authority* own = nullptr,
                                              const std::string& certificate = "") {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = trusted.Pem("ca.pem");
  if (own != nullptr) {
    options.pem_cert_chain = own->Pem(certificate + ".pem");
    options.pem_private_key = own->Pem(certificate + ".key");
  }
  return grpc::SslCredentials(options);
}

grpc::Status Rank(const std::shared_ptr<grpc::Channel>& channel, const v1::RankRequest& request = RankFor("u")) {
  v1::RankResponse response;
  return v1::Ranking::NewStub(channel)->Rank(Deadline(5'000).get(), request, &response);
}

grpc::Status List(const std::shared_ptr<grpc::Channel>& channel, const std::string& token = "") {
  v1::ListModelsResponse response;
  auto context = Deadline(5'000);
  if (!token.empty()) context->AddMetadata("authorization", "Bearer " + token);
  return v1::Models::NewStub(channel)->List(context.get(), v1::ListModelsRequest(), &response);
}

grpc::Status Load(const std::shared_ptr<grpc::Channel>& channel, const std::string& token = "") {
  v1::LoadModelRequest request;
  request.set_model("fake");
  request.set_version("2");
  v1::LoadModelResponse response;
  auto context = Deadline(5'000);
  if (!token.empty()) context->AddMetadata("authorization", "Bearer " + token);
  return v1::Models::NewStub(channel)->Load(context.get(), request, &response);
}

RpcServer::Options TlsOptions(const Authority& authority, bool mutual) {
  RpcServer::Options options;
  auto* tls = options.config.mutable_tls();
  tls->set_certificate_file(authority.File("server.pem"));
  tls->set_key_file(authority.File("server.key"));
  tls->set_refresh_interval_s(1);
  if (mutual) tls->set_client_ca_file(authority.File("ca.pem"));
  return options;
}

TEST(Tls, ServesTrustingClientsAndNoOthers) {
  TempDir dir, other_dir;
  Authority authority(dir, "ca"), stranger(other_dir, "ca");
  authority.Issue("server", "localhost");
  RpcServer server(TlsOptions(authority, false));
  EXPECT_TRUE(Rank(RpcServer::Connect(server.address(), Tls(authority))).ok());
  EXPECT_EQ(Rank(RpcServer::Connect(server.address())).error_code(), StatusCode::UNAVAILABLE);  // plaintext
  EXPECT_EQ(Rank(RpcServer::Connect(server.address(), Tls(stranger))).error_code(), StatusCode::UNAVAILABLE);
}

TEST(Tls, MutualDemandsACertificateOfOurs) {
  TempDir dir, other_dir;
  Authority authority(dir, "ca"), stranger(other_dir, "ca");
  authority.Issue("server", "localhost");
  authority.Issue("client", "somebody");
  stranger.Issue("client", "somebody");
  RpcServer server(TlsOptions(authority, true));
  EXPECT_TRUE(Rank(RpcServer::Connect(server.address(), Tls(authority, &authority, "client"))).ok());
  EXPECT_EQ(Rank(RpcServer::Connect(server.address(), Tls(authority))).error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(Rank(RpcServer::Connect(server.address(), Tls(authority, &stranger, "client"))).error_code(),
            StatusCode::UNAVAILABLE);
}

TEST(Tls, NewCertificatesAreTakenUpWithoutFailingACall) {
  TempDir dir, next_dir;
  Authority authority(dir, "ca"), next(next_dir, "ca");
  authority.Issue("server", "localhost");
  next.Issue("server", "localhost");
  RpcServer server(TlsOptions(authority, false));
  auto old_client = RpcServer::Connect(server.address(), Tls(authority));
  ASSERT_TRUE(Rank(old_client).ok());
  // Key and certificate are replaced by renames; the watcher takes the pair only when it matches.
  for (const char* file : {"server.key", "server.pem"}) {
    std::filesystem::copy_file(next.File(file), authority.File(std::string(file) + ".new"));
    std::filesystem::rename(authority.File(std::string(file) + ".new"), authority.File(file));
  }
  // Connections that stand go on; new ones see the new certificate once the watcher has looked (once a second).
  bool taken_up = false;
  for (int attempt = 0; attempt < 200 && !taken_up; ++attempt) {
    EXPECT_TRUE(Rank(old_client).ok());
    taken_up = Rank(RpcServer::Connect(server.address(), Tls(next))).ok();
    if (!taken_up) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_TRUE(taken_up);
  EXPECT_FALSE(Rank(RpcServer::Connect(server.address(), Tls(authority))).ok());
}

TEST(Roles, ClientCertificatesNameThem) {
  TempDir dir;
  Authority authority(dir, "ca");
  authority.Issue("server", "localhost");
  for (const char* name : {"operator", "watcher", "nobody"}) authority.Issue(name, name);
  RpcServer::Options options = TlsOptions(authority, true);
  WriteAll(dir.path("roles"), "cn operator operator\ncn watcher reader,override\n");
  options.config.mutable_admin()->set_roles_file(dir.path("roles"));
  RpcServer server(options);
  const auto admin = [&](const std::string& name) {
    return RpcServer::Connect(server.admin_address(), Tls(authority, &authority, name));
  };
  EXPECT_TRUE(List(admin("operator")).ok());
  EXPECT_TRUE(Load(admin("operator")).ok());
  EXPECT_TRUE(List(admin("watcher")).ok());
  const grpc::Status refused = Load(admin("watcher"));
  EXPECT_EQ(refused.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(refused.error_message(), "backstory.v1.Models/Load needs the role \"operator\"");
  EXPECT_EQ(List(admin("nobody")).error_code(), StatusCode::PERMISSION_DENIED);

  v1::RankRequest request = RankFor("u");
  (*request.mutable_parameters())["history_rows"] = "10";
  const auto data = [&](const std::string& name) {
    return RpcServer::Connect(server.address(), Tls(authority, &authority, name));
  };
  EXPECT_TRUE(Rank(data("watcher"), request).ok());
  const grpc::Status no_override = Rank(data("operator"), request);
  EXPECT_EQ(no_override.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(no_override.error_message(), HasSubstr("override"));
  EXPECT_TRUE(Rank(data("nobody")).ok());  // ranking itself needs no role
}

TEST(Roles, BearerTokensNameThem) {
  TempDir dir;
  WriteAll(dir.path("token"), "correct-horse-battery\n");
  // printf %s watcher-token-0123456789 | sha256sum
  WriteAll(dir.path("roles"),
           "# who may do what\n"
           "token-file " + dir.path("token") + " operator\n"
           "token-sha256 a2dd84b919602997dd2eed253f2e52521800311b51ace823127c8a6664c03378 reader\n");
  RpcServer::Options options;
  options.config.mutable_admin()->set_roles_file(dir.path("roles"));
  RpcServer server(options);
  auto admin = RpcServer::Connect(server.admin_address());
  EXPECT_TRUE(Load(admin, "correct-horse-battery").ok());
  EXPECT_TRUE(List(admin, "correct-horse-battery").ok());
  EXPECT_TRUE(List(admin, "watcher-token-0123456789").ok());
  EXPECT_EQ(Load(admin, "watcher-token-0123456789").error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(Load(admin, "correct-horse-batterx").error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(List(admin).error_code(), StatusCode::PERMISSION_DENIED);  // with a roles file, loopback alone is nobody
}

// Every admin method asks for its role.
TEST(Roles, EveryAdminMethodIsGuarded) {
  TempDir dir;
  WriteAll(dir.path("roles"), "cn someone-else operator\n");
  RpcServer::Options options;
  options.config.mutable_admin()->set_roles_file(dir.path("roles"));
  RpcServer server(options);
  auto channel = RpcServer::Connect(server.admin_address());
  auto models = v1::Models::NewStub(channel);
  auto store = v1::Store::NewStub(channel);
  std::map<std::string, grpc::Status> ends;
  v1::ListModelsResponse list;
  v1::LoadModelResponse load;
  v1::UnloadModelResponse unload;
  v1::SetLabelResponse label;
  v1::SetCalibrationResponse calibration;
  v1::CheckpointResponse checkpoint;
  v1::VerifyResponse verify;
  ends["Models/List"] = models->List(Deadline().get(), {}, &list);
  ends["Models/Load"] = models->Load(Deadline().get(), {}, &load);
  ends["Models/Unload"] = models->Unload(Deadline().get(), {}, &unload);
  ends["Models/SetLabel"] = models->SetLabel(Deadline().get(), {}, &label);
  ends["Models/SetCalibration"] = models->SetCalibration(Deadline().get(), {}, &calibration);
  ends["Store/Checkpoint"] = store->Checkpoint(Deadline().get(), {}, &checkpoint);
  ends["Store/Verify"] = store->Verify(Deadline().get(), {}, &verify);
  for (const auto& [method, status] : ends) {
    EXPECT_EQ(status.error_code(), StatusCode::PERMISSION_DENIED) << method;
    EXPECT_THAT(status.error_message(), HasSubstr("backstory.v1." + method + " needs the role"));
  }
}

// The admin services are not on the data port, whoever asks.
TEST(Roles, TheDataPortHasNoAdminMethods) {
  RpcServer server;
  EXPECT_EQ(List(RpcServer::Connect(server.address())).error_code(), StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace backstory::testing
