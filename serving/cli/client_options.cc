#include "serving/cli/client_options.h"

#include <google/protobuf/util/json_util.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <sstream>

#include "CLI/CLI.hpp"
#include "serving/cli/exit_codes.h"

namespace backstory {
namespace {

std::string ReadOrFail(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) FailCommand(kExitUsage, "cannot read " + path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

void ClientOptions::AddTo(CLI::App* command) {
  command->add_option("--server", server, "Address of the server, host:port")->capture_default_str();
  command->add_option("--tls-ca", ca_file, "PEM file of the CA that signed the server's certificate; turns TLS on");
  command->add_option("--tls-cert", certificate_file, "PEM client certificate (mutual TLS)");
  command->add_option("--tls-key", key_file, "PEM key of --tls-cert");
  command->add_option("--token-file", token_file, "File whose first line is a bearer token");
  command->add_option("--deadline-ms", deadline_ms, "Deadline of each call")->capture_default_str();
}

std::shared_ptr<grpc::Channel> ClientOptions::Connect() const {
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!ca_file.empty()) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = ReadOrFail(ca_file);
    if (!certificate_file.empty()) options.pem_cert_chain = ReadOrFail(certificate_file);
    if (!key_file.empty()) options.pem_private_key = ReadOrFail(key_file);
    credentials = grpc::SslCredentials(options);
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(256 << 20);
  return grpc::CreateCustomChannel(server, credentials, arguments);
}

std::unique_ptr<grpc::ClientContext> ClientOptions::Context() const {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(deadline_ms));
  if (!token_file.empty()) {
    std::string token = ReadOrFail(token_file);
    token = token.substr(0, token.find_first_of("\r\n"));
    context->AddMetadata("authorization", "Bearer " + token);
  }
  return context;
}

void CheckCall(const grpc::Status& status, const std::string& doing) {
  if (status.ok()) return;
  CheckOk(absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()), doing);
}

void PrintJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  print.always_print_primitive_fields = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, print).ok()) {
    FailCommand(kExitFailed, "the reply cannot be printed as JSON");
  }
  std::cout << text << "\n";
}

}  // namespace backstory
