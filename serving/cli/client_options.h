// How a client command reaches a server: address, TLS, token, deadline.
#ifndef BACKSTORY_SERVING_CLI_CLIENT_OPTIONS_H_
#define BACKSTORY_SERVING_CLI_CLIENT_OPTIONS_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace CLI {
class App;
}
namespace google::protobuf {
class Message;
}

namespace backstory {

struct ClientOptions {
  std::string server = "127.0.0.1:7070";
  std::string ca_file, certificate_file, key_file;  // PEM; ca_file set = TLS
  std::string token_file;                           // bearer token, first line
  int deadline_ms = 10'000;

  // --server, --tls-ca, --tls-cert, --tls-key, --token-file, --deadline-ms. `this` must outlive the parse.
  void AddTo(CLI::App* command);
  // A channel of its own connection. Ends the command if a file cannot be read.
  std::shared_ptr<grpc::Channel> Connect() const;
  // Deadline and token set.
  std::unique_ptr<grpc::ClientContext> Context() const;
};

// Ends the command unless OK, with the exit code of the status.
void CheckCall(const grpc::Status& status, const std::string& doing = "");

// One JSON object on standard output: the proto's own field names, unset fields included.
void PrintJson(const google::protobuf::Message& message);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_CLIENT_OPTIONS_H_
