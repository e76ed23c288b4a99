#include "models/text_proto.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/message.h"
#include "google/protobuf/text_format.h"

namespace backstory {
namespace {

constexpr int kNestingMax = 16;

// Keeps the first error; protobuf counts lines and columns from 0.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  explicit FirstError(std::string_view source_name) : source_name_(source_name) {}
  void AddError(int line, int column, const std::string& message) override {
    if (text_.empty()) text_ = absl::StrCat(source_name_, ":", line + 1, ":", column + 1, ": ", message);
  }
  void AddWarning(int, int, const std::string&) override {}
  const std::string& text() const { return text_; }

 private:
  std::string source_name_;
  std::string text_;
};

}  // namespace

absl::Status ParseTextProto(std::string_view text, std::string_view source_name, google::protobuf::Message* message) {
  FirstError errors(source_name);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  parser.SetRecursionLimit(kNestingMax);
  google::protobuf::io::ArrayInputStream input(text.data(), static_cast<int>(text.size()));
  if (parser.Parse(&input, message)) return absl::OkStatus();
  if (!errors.text().empty()) return absl::InvalidArgumentError(errors.text());
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(source_name), ": not a text message of ", message->GetTypeName()));
}

}  // namespace backstory
