// absl::Status <-> grpc::Status, code by code, and messages <-> byte buffers.
#ifndef BACKSTORY_SERVING_RPC_GRPC_STATUS_H_
#define BACKSTORY_SERVING_RPC_GRPC_STATUS_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace backstory::rpc {

// UNKNOWN becomes INTERNAL: it says nothing to a caller, and retry policies must not guess.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// INVALID_ARGUMENT naming the message and, for text that is not UTF-8, the field.
absl::Status ParseMessage(grpc::ByteBuffer* bytes, google::protobuf::Message* message);
grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_GRPC_STATUS_H_
