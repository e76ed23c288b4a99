#include "models/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/models/temp_dir.h"

namespace backstory {
namespace {

using ::testing::HasSubstr;

// A file of this header and so many data bytes, parsed from memory of exactly its size (ASan sees a byte too far).
absl::StatusOr<SafetensorsFile> ParseRaw(const std::string& raw, const SafetensorsLimits& limits = {}) {
  std::shared_ptr<uint8_t> copy(new uint8_t[raw.size()], std::default_delete<uint8_t[]>());
  std::memcpy(copy.get(), raw.data(), raw.size());
  return SafetensorsFile::Parse(copy, raw.size(), "test", limits);
}

std::string Raw(const std::string& header, size_t data_bytes, char fill = 0) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data_bytes, fill);
}

void ExpectRefused(const std::string& header, size_t data_bytes, const std::string& why,
                   const SafetensorsLimits& limits = {}) {
  const auto file = ParseRaw(Raw(header, data_bytes), limits);
  ASSERT_FALSE(file.ok()) << header;
  EXPECT_EQ(file.status().code(), absl::StatusCode::kDataLoss) << file.status();
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(why)) << header;
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("test: ")) << header;
}

const char kTwo[] = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                    R"("b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})";

TEST(SafetensorsRead, AcceptsTwoTensorsPaddingAndMetadata) {
  const auto file = ParseRaw(Raw(std::string(kTwo) + "   ", 11));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->entries().size(), 2u);
  EXPECT_EQ(file->entries()[1].name, "b");
  EXPECT_EQ(file->Bytes(file->entries()[1]).size(), 3u);
  const auto with =
      ParseRaw(Raw(R"({"__metadata__":{"k":"v\u00e9"},"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4));
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_EQ(with->metadata().at("k"), "v\xc3\xa9");
  EXPECT_EQ(with->Find("s")->shape.size(), 0u);
  EXPECT_EQ(with->Find("__metadata__"), nullptr);
  EXPECT_TRUE(ParseRaw(Raw("{}", 0)).ok());
}

TEST(SafetensorsRead, OrderOfTheHeaderDoesNotMatter) {
  const auto file = ParseRaw(Raw(R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},)"
                                 R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                                 11));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->entries()[0].name, "a");
}

TEST(SafetensorsRead, RefusesHeadersThatLie) {
  EXPECT_FALSE(ParseRaw("").ok());
  EXPECT_FALSE(ParseRaw("1234567").ok());
  std::string raw = Raw(kTwo, 11);
  for (uint64_t length : {uint64_t{0}, uint64_t{1}, sizeof(kTwo) - 2, sizeof(kTwo), uint64_t{100'000'001}, UINT64_MAX,
                          UINT64_MAX - 7, uint64_t{1} << 63}) {
    std::memcpy(raw.data(), &length, 8);
    const auto file = ParseRaw(raw);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kDataLoss) << length << " " << file.status();
  }
}

TEST(SafetensorsRead, RefusesWhatIsNotTheFormat) {
  ExpectRefused("", 0, "does not begin with {");
  ExpectRefused(" {}", 0, "does not begin with {");
  ExpectRefused("\xef\xbb\xbf{}", 0, "does not begin with {");
  ExpectRefused("[]", 0, "does not begin with {");
  ExpectRefused("{}{}", 0, "not JSON");
  ExpectRefused(std::string("{}\0", 3), 0, "zero byte");
  ExpectRefused(std::string("{}\0{}", 5), 0, "zero byte");
  ExpectRefused("{\"a\":", 0, "not JSON");
  ExpectRefused("{\"\xff\":{}}", 0, "not JSON in UTF-8");
  ExpectRefused(R"({"a":1})", 0, "tensor a: unexpected a number");
  ExpectRefused(R"({"a":null})", 0, "tensor a: unexpected null");
  ExpectRefused(R"({"a":[]})", 0, "unexpected an array");
  ExpectRefused(R"({"a":{}})", 0, "tensor a: lacks dtype, shape or data_offsets");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1]}})", 4, "lacks");
  ExpectRefused(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4, "unknown dtype \"F33\"");
  ExpectRefused(R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})", 4, "unexpected a number");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "unexpected an array");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "no 64-bit integer");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "negative");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "fewer than two");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}})", 4, "more than two");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4, "unknown key \"x\"");
  ExpectRefused(R"({"__metadata__":{"k":1}})", 0, "__metadata__: unexpected a number");
  ExpectRefused(R"({"__metadata__":{"k":{}}})", 0, "__metadata__: unexpected an object");
}

TEST(SafetensorsRead, RefusesDuplicatesAndBadNames) {
  ExpectRefused(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2,
      "tensor a: named twice");
  ExpectRefused(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "key \"dtype\" twice");
  ExpectRefused(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "key \"k\" twice");
  ExpectRefused(R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__: named twice");
  ExpectRefused(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "empty name");
  ExpectRefused(R"({"a\u0000":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "control character");
  ExpectRefused("{\"" + std::string(257, 'n') + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
                "256 bytes");
}

TEST(SafetensorsRead, RefusesRangesThatDoNotTileTheData) {
  const auto one = [](const char* shape, const char* offsets) {
    return std::string(R"({"a":{"dtype":"F32","shape":)") + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  EXPECT_TRUE(ParseRaw(Raw(one("[2]", "[0,8]"), 8)).ok());
  ExpectRefused(one("[2]", "[0,8]"), 7, "leave the 7 bytes");
  ExpectRefused(one("[2]", "[0,8]"), 9, "1 bytes belong to no tensor");
  ExpectRefused(one("[2]", "[1,9]"), 9, "leave a hole");
  ExpectRefused(one("[2]", "[8,0]"), 8, "leave the 8 bytes");
  ExpectRefused(one("[3]", "[0,8]"), 8, "has 12 bytes");
  ExpectRefused(one("[0]", "[0,8]"), 8, "has 0 bytes");
  ExpectRefused(one("[2]", "[0,18446744073709551615]"), 8, "leave the 8 bytes");
  ExpectRefused(one("[2]", "[0,18446744073709551616]"), 8, "no 64-bit integer");
  // 2^62 * 4 bytes is 0 modulo 2^64: the product has to be checked, not its remainder.
  ExpectRefused(one("[4611686018427387904]", "[0,0]"), 0, "overflows");
  ExpectRefused(one("[4294967296,4294967296]", "[0,0]"), 0, "overflows");
  ExpectRefused(one("[9223372036854775808]", "[0,0]"), 0, "exceeds 2^63");
  ExpectRefused(one("[1,1,1,1,1,1,1,1,2]", "[0,8]"), 8, "more than 8 dimensions");
  ExpectRefused(
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6,
      "overlap");
  ExpectRefused(
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4,
      "overlap");
  ExpectRefused(
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})", 6,
      "tensor b: data_offsets [4, 6] leave a hole");
}

TEST(SafetensorsRead, LimitsHoldOnBothSides) {
  std::string header = "{";
  for (int i = 0; i < 5; ++i) {
    header += (i ? ",\"t" : "\"t") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  header += "}";
  SafetensorsLimits limits;
  limits.tensors_max = 5;
  EXPECT_TRUE(ParseRaw(Raw(header, 0), limits).ok());
  limits.tensors_max = 4;
  ExpectRefused(header, 0, "more than 4 tensors", limits);
  limits = {};
  limits.header_bytes_max = header.size();
  EXPECT_TRUE(ParseRaw(Raw(header, 0), limits).ok());
  limits.header_bytes_max = header.size() - 1;
  ExpectRefused(header, 0, "exceed the limit", limits);
}

TEST(SafetensorsRead, WidensHalvesExactly) {
  const std::vector<std::pair<uint16_t, float>> halves = {
      {0x0000, 0.0f},       {0x8000, -0.0f},    {0x3c00, 1.0f},     {0xc000, -2.0f},
      {0x7bff, 65504.0f},   {0x0400, 0x1p-14f}, {0x0001, 0x1p-24f}, {0x83ff, -1023 * 0x1p-24f},
      {0x3555, 0x1.554p-2f}};
  std::string data;
  for (const auto& [bits, value] : halves) data.append(reinterpret_cast<const char*>(&bits), 2);
  const std::string n = std::to_string(halves.size()), bytes = std::to_string(data.size());
  const auto make = [&](const char* dtype) {
    return Raw(std::string(R"({"h":{"dtype":")") + dtype + R"(","shape":[)" + n + R"(],"data_offsets":[0,)" + bytes +
                   "]}}",
               0) +
           data;
  };
  TensorMap f16, bf16;
  ASSERT_TRUE(ParseRaw(make("F16"))->AddTo(&f16).ok());
  ASSERT_TRUE(ParseRaw(make("BF16"))->AddTo(&bf16).ok());
  for (size_t i = 0; i < halves.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(f16.Find("h")->data[i]), std::bit_cast<uint32_t>(halves[i].second)) << i;
    EXPECT_EQ(std::bit_cast<uint32_t>(bf16.Find("h")->data[i]), uint32_t{halves[i].first} << 16) << i;
  }
}

TEST(SafetensorsRead, RefusesNonFiniteWeightsOfEveryDType) {
  struct Case {
    const char* dtype;
    std::string bytes;
    const char* what;
  };
  const auto f32 = [](float v) { return std::string(reinterpret_cast<const char*>(&v), 4); };
  for (const Case& c :
       {Case{"F32", f32(1) + f32(NAN), "element 1 is NaN"},
        Case{"F32", f32(INFINITY) + f32(0), "element 0 is infinite"},
        Case{"F32", f32(0) + f32(-INFINITY), "element 1 is infinite"}, Case{"F16", {"\0\0\0\x7c", 4}, "infinite"},
        Case{"F16", {"\0\0\1\xfe", 4}, "NaN"}, Case{"BF16", {"\0\0\x80\x7f", 4}, "infinite"},
        Case{"I32", f32(0) + f32(0), "expected dtype F32, F16 or BF16, found I32"}}) {
    const size_t n = c.bytes.size() / (c.bytes.size() == 8 ? 4 : 2);
    TensorMap map;
    const auto file =
        ParseRaw(Raw(std::string(R"({"w.x":{"dtype":")") + c.dtype + R"(","shape":[)" + std::to_string(n) +
                         R"(],"data_offsets":[0,)" + std::to_string(c.bytes.size()) + "]}}",
                     0) +
                 c.bytes);
    ASSERT_TRUE(file.ok()) << file.status();
    const absl::Status status = file->AddTo(&map);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << c.dtype;
    EXPECT_THAT(std::string(status.message()), HasSubstr("tensor w.x: ")) << c.dtype;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.what)) << c.dtype;
  }
}

TEST(SafetensorsWrite, RoundTripsEveryTypeAlignedAndDeterministically) {
  const TempDir dir;
  const std::vector<double> f64{1.5, -2.25};
  const std::vector<float> f32{1, 2, 3, 4, 5, std::numeric_limits<float>::denorm_min()};
  const std::vector<int64_t> i64{INT64_MIN, -1, INT64_MAX};
  const std::vector<int32_t> i32{};
  const std::vector<uint8_t> u8{7, 0, 255};
  std::vector<SafetensorsTensor> tensors = {{"u", DType::kU8, {3}, AsBytes(u8)},
                                            {"f", DType::kF32, {2, 3}, AsBytes(f32)},
                                            {"e", DType::kI32, {0, 4}, AsBytes(i32)},
                                            {"i", DType::kI64, {3}, AsBytes(i64)},
                                            {"d", DType::kF64, {2}, AsBytes(f64)}};
  ASSERT_TRUE(WriteSafetensors(dir.path("x"), tensors, {{"config", "a \"b\" \n"}}).ok());
  std::reverse(tensors.begin(), tensors.end());
  ASSERT_TRUE(WriteSafetensors(dir.path("y"), tensors, {{"config", "a \"b\" \n"}}).ok());
  EXPECT_EQ(ReadAll(dir.path("x")), ReadAll(dir.path("y")));

  const auto file = SafetensorsFile::Open(dir.path("x"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata().at("config"), "a \"b\" \n");
  EXPECT_EQ(*file->Read<double>("d"), f64);
  EXPECT_EQ(*file->Read<float>("f"), f32);
  EXPECT_EQ(*file->Read<int64_t>("i"), i64);
  EXPECT_EQ(*file->Read<int32_t>("e"), i32);
  EXPECT_EQ(*file->Read<uint8_t>("u"), u8);
  EXPECT_THAT(std::string(file->Read<float>("d").status().message()),
              HasSubstr("tensor d: expected dtype F32, found F64"));
  EXPECT_EQ(file->Read<float>("z").status().code(), absl::StatusCode::kNotFound);
  for (const SafetensorsEntry& e : file->entries()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file->Bytes(e).data()) % DTypeBytes(e.dtype), 0u) << e.name;
  }
  EXPECT_EQ(std::filesystem::exists(dir.path("x.tmp")), false);
}

TEST(SafetensorsWrite, RefusesWhatItCouldNotReadBack) {
  const TempDir dir;
  const std::vector<uint8_t> u8{1, 2};
  EXPECT_THAT(std::string(WriteSafetensors(dir.path("x"), {{"a", DType::kF32, {1}, AsBytes(u8)}}).message()),
              HasSubstr("tensor a: 2 bytes do not fill F32 [1]"));
  EXPECT_THAT(std::string(WriteSafetensors(dir.path("x"),
                                           {{"a", DType::kU8, {2}, AsBytes(u8)}, {"a", DType::kU8, {2}, AsBytes(u8)}})
                              .message()),
              HasSubstr("same name"));
  EXPECT_FALSE(WriteSafetensors(dir.path("x"), {{"", DType::kU8, {2}, AsBytes(u8)}}).ok());
  EXPECT_FALSE(std::filesystem::exists(dir.path("x")));
  EXPECT_EQ(WriteSafetensors(dir.path("no/such/folder"), {}).code(), absl::StatusCode::kNotFound);
}

TEST(SafetensorsOpen, NamesThePathAndRefusesLinks) {
  const TempDir dir;
  EXPECT_EQ(SafetensorsFile::Open(dir.path("absent")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(dir.path()).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(WriteSafetensors(dir.path("x"), {}).ok());
  std::filesystem::create_symlink(dir.path("x"), dir.path("link"));
  EXPECT_THAT(std::string(SafetensorsFile::Open(dir.path("link")).status().message()), HasSubstr("symbolic link"));
  WriteAll(dir.path("empty"), "");
  EXPECT_EQ(SafetensorsFile::Open(dir.path("empty")).status().code(), absl::StatusCode::kDataLoss);
}

TEST(SafetensorsRead, SurvivesEveryFlipAndEveryCutOfAHeader) {
  const std::string good = Raw(kTwo, 11, '\x11');
  for (size_t cut = 0; cut < good.size(); ++cut) EXPECT_FALSE(ParseRaw(good.substr(0, cut)).ok()) << cut;
  int accepted = 0;
  for (size_t i = 0; i < good.size() - 11; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      const auto file = ParseRaw(bad);
      if (!file.ok()) {
        EXPECT_EQ(file.status().code(), absl::StatusCode::kDataLoss);
        continue;
      }
      ++accepted;  // another name, or another dtype of the same width
      TensorMap map;
      (void)file->AddTo(&map);
    }
  }
  EXPECT_LT(accepted, 40);
}

}  // namespace
}  // namespace backstory
