// Strict parsing of protobuf text: the first error as a status with source, line and column. Private to models.
#ifndef BACKSTORY_MODELS_TEXT_PROTO_H_
#define BACKSTORY_MODELS_TEXT_PROTO_H_

#include <string_view>

#include "absl/status/status.h"

namespace google::protobuf {
class Message;
}

namespace backstory {

// INVALID_ARGUMENT "source:line:column: reason". Nesting is limited to 16 levels. Unknown fields, repeated singular
// fields and enum names that do not exist are errors; enum numbers that do not exist are accepted where proto3 does, so
// callers check them.
absl::Status ParseTextProto(std::string_view text, std::string_view source_name, google::protobuf::Message* message);

}  // namespace backstory

#endif  // BACKSTORY_MODELS_TEXT_PROTO_H_
