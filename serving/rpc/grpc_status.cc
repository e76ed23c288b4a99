#include "serving/rpc/grpc_status.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace backstory::rpc {
namespace {

// protobuf says which string field is not UTF-8 in its log only. It goes to the parsing thread instead of to stderr, where
// a hostile client could fill a disk with it.
thread_local std::string parse_complaint;

void KeepComplaint(google::protobuf::LogLevel level, const char*, int, const std::string& message) {
  if (level >= google::protobuf::LOGLEVEL_ERROR) parse_complaint = message;
}

// "String field 'backstory.v1.RankRequest.scene' contains invalid UTF-8 data when ..." -> the field's name.
std::string FieldOf(const std::string& complaint) {
  const size_t first = complaint.find('\'');
  const size_t last = first == std::string::npos ? first : complaint.find('\'', first + 1);
  return last == std::string::npos ? std::string() : complaint.substr(first + 1, last - first - 1);
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = status.code() == absl::StatusCode::kUnknown ? absl::StatusCode::kInternal : status.code();
  return {static_cast<grpc::StatusCode>(code), std::string(status.message())};
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

absl::Status ParseMessage(grpc::ByteBuffer* bytes, google::protobuf::Message* message) {
  [[maybe_unused]] static auto* previous = google::protobuf::SetLogHandler(&KeepComplaint);
  parse_complaint.clear();
  grpc::ProtoBufferReader reader(bytes);
  if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  const std::string field = FieldOf(parse_complaint);
  if (!field.empty()) return absl::InvalidArgumentError(absl::StrCat(field, " must be UTF-8"));
  return absl::InvalidArgumentError(absl::StrCat("the request is not a valid ", message->GetTypeName()));
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  grpc::ByteBuffer bytes;
  bool own = false;
  (void)grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::Message>(message, &bytes, &own);
  return bytes;
}

}  // namespace backstory::rpc
