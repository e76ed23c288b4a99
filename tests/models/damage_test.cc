// Damaged and wrong versions: every one is refused with a message that names the file, tensor or field, and none
// crashes.
//
// Bit rot is damage under an old MANIFEST; a wrong model is one whose MANIFEST vouches for it. Random cases print the
// seed; BACKSTORY_SEED repeats one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "models/grab/init_random.h"
#include "models/grab/loader.h"
#include "models/grab/random_version.h"
#include "models/manifest.h"
#include "models/safetensors.h"
#include "tests/models/temp_dir.h"

namespace backstory::grab {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr char kWeights[] = "weights-00001-of-00001.safetensors";

using Files = std::map<std::string, std::string>;  // path -> content

// One tensor of a weight file, free to be changed.
struct LooseTensor {
  std::string dtype = "F32";
  std::string shape;
  std::string data;
};
using LooseTensors = std::map<std::string, LooseTensor>;

class Damage : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    TempDir dir;
    const std::string path = dir.path("v");
    ASSERT_TRUE(WriteRandomVersion(*PresetConfig("grab-tiny"), {.seed = 11}, path).ok());
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file())
        whole_[entry.path().lexically_relative(path).string()] = ReadAll(entry.path().string());
    }
    ASSERT_EQ(whole_.size(), 5u);
  }
  static void TearDownTestSuite() {
    std::printf("%d damaged versions refused\n", refused_);
    const auto* all = ::testing::UnitTest::GetInstance();
    if (all->test_to_run_count() < all->total_test_count()) return;
    EXPECT_GE(refused_, 200) << "what reliability goal R4 asks for";
  }

  void SetUp() override {
    const char* given = std::getenv("BACKSTORY_SEED");
    seed_ = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    random_.seed(seed_);
  }
  size_t Below(size_t n) { return random_() % n; }

  // Writes `files` and expects loading to fail with a message that has each of `names`.
  void ExpectRefused(const std::string& what, const Files& files, const std::vector<std::string>& names) {
    TempDir dir;
    for (const auto& [path, content] : files) WriteAll(dir.path("v/" + path), content);
    ExpectRefusedAt(what, dir.path("v"), names);
  }
  void ExpectRefusedAt(const std::string& what, const std::string& path, const std::vector<std::string>& names) {
    const auto loaded = LoadGrabVersion(path);
    ASSERT_FALSE(loaded.ok()) << what << ", BACKSTORY_SEED=" << seed_;
    for (const std::string& name : names) {
      EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(name)) << what << ", BACKSTORY_SEED=" << seed_;
    }
    EXPECT_NE(loaded.status().code(), absl::StatusCode::kUnknown) << what;
    EXPECT_NE(loaded.status().code(), absl::StatusCode::kInternal) << what;
    ++refused_;
  }
  // The same under a MANIFEST made for the damaged files.
  void ExpectWrong(const std::string& what, Files files, const std::vector<std::string>& names) {
    files["MANIFEST"] = ManifestOf(files);
    ExpectRefused(what, files, names);
  }

  static std::string ManifestOf(const Files& files) {
    Manifest manifest;
    for (const auto& [path, content] : files) {
      if (path == "MANIFEST") continue;
      const auto* bytes = reinterpret_cast<const uint8_t*>(content.data());
      manifest.files.push_back({path, content.size(), Digest(manifest.kind, {bytes, content.size()})});
    }
    return ManifestToText(manifest);
  }

  static LooseTensors Unpack() {
    LooseTensors tensors;
    const std::string& raw = whole_.at(kWeights);
    std::shared_ptr<uint8_t> copy(new uint8_t[raw.size()], std::default_delete<uint8_t[]>());
    std::memcpy(copy.get(), raw.data(), raw.size());
    const auto file = SafetensorsFile::Parse(copy, raw.size(), "test");
    EXPECT_TRUE(file.ok()) << file.status();
    for (const SafetensorsEntry& e : file->entries()) {
      const auto bytes = file->Bytes(e);
      tensors[e.name] = {"F32", ShapeText(e.shape), {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
    }
    return tensors;
  }
  // A weight file without any checks, so that it can say anything.
  static std::string Pack(const LooseTensors& tensors) {
    std::string header = "{", data;
    for (const auto& [name, t] : tensors) {
      absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", name, "\":{\"dtype\":\"", t.dtype,
                      "\",\"shape\":", t.shape, ",\"data_offsets\":[", data.size(), ",", data.size() + t.data.size(),
                      "]}");
      data += t.data;
    }
    return WithHeader(header + "}", data);
  }
  static std::string WithHeader(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
  }
  void ExpectWrongTensors(const std::string& what, const std::function<void(LooseTensors*)>& change,
                          const std::vector<std::string>& names) {
    LooseTensors tensors = Unpack();
    change(&tensors);
    Files files = whole_;
    files[kWeights] = Pack(tensors);
    ExpectWrong(what, files, names);
  }

  static Files whole_;
  static int refused_;
  uint64_t seed_ = 0;
  std::mt19937_64 random_;
};

Files Damage::whole_;
int Damage::refused_ = 0;

TEST_F(Damage, TheUndamagedVersionLoads) {
  TempDir dir;
  for (const auto& [path, content] : whole_) WriteAll(dir.path("v/" + path), content);
  const auto loaded = LoadGrabVersion(dir.path("v"));
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  Files files = whole_;
  files[kWeights] = Pack(Unpack());
  files["MANIFEST"] = ManifestOf(files);
  TempDir repacked;
  for (const auto& [path, content] : files) WriteAll(repacked.path("v/" + path), content);
  const auto again = LoadGrabVersion(repacked.path("v"));
  EXPECT_TRUE(again.ok()) << "the tools of this test change nothing by themselves: " << again.status();
}

TEST_F(Damage, BitRotInAnyFile) {
  for (const auto& [path, content] : whole_) {
    for (int i = 0; i < 20; ++i) {
      Files files = whole_;
      const size_t at = Below(content.size());
      files[path][at] = static_cast<char>(files[path][at] ^ (1 << Below(8)));
      ExpectRefused(absl::StrCat("flip in ", path, " at ", at), files,
                    path == "MANIFEST" ? std::vector<std::string>{} : std::vector{path});
    }
    for (int i = 0; i < 10; ++i) {
      Files files = whole_;
      files[path].resize(Below(content.size()));
      ExpectRefused(absl::StrCat("cut of ", path, " to ", files[path].size()), files, {path == "MANIFEST" ? "" : path});
    }
    Files files = whole_;
    files[path] += '\0';
    ExpectRefused("grown " + path, files, {path});
    files = whole_;
    files.erase(path);
    ExpectRefused("lost " + path, files, {path, "missing"});
    files = whole_;
    files[path].clear();
    ExpectRefused("emptied " + path, files, {path});
  }
}

TEST_F(Damage, EveryByteOfManifest) {
  TempDir dir;
  for (const auto& [path, content] : whole_) WriteAll(dir.path("v/" + path), content);
  const std::string& good = whole_.at("MANIFEST");
  for (size_t at = 0; at < good.size(); ++at) {
    for (int bit : {0, 4, 5, 7}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      WriteAll(dir.path("v/MANIFEST"), bad);
      const auto read = ReadVersion(dir.path("v"));
      EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << "byte " << at << " bit " << bit << read.status();
    }
  }
}

TEST_F(Damage, ManifestThatLies) {
  const std::string good = whole_.at("MANIFEST");
  const auto with = [&](const std::string& text) {
    Files files = whole_;
    files["MANIFEST"] = text;
    return files;
  };
  const auto replaced = [&](const char* from, const char* to) { return with(absl::StrReplaceAll(good, {{from, to}})); };
  const std::string digest = "00000000000000000000000000000000";
  ExpectRefused("traversal", with(good + digest + " 3 ../secret\n"), {"MANIFEST:6", "\"../secret\" is refused"});
  ExpectRefused("absolute", with(good + digest + " 3 /etc/passwd\n"), {"MANIFEST:6", "is refused"});
  ExpectRefused("hidden", with(good + digest + " 3 x/.hidden\n"), {"MANIFEST:6", "is refused"});
  ExpectRefused("deep", with(good + digest + " 3 x/a/b/c\n"), {"MANIFEST:6", "is refused"});
  ExpectRefused("strange byte", with(good + digest + " 3 x\x01y\n"), {"MANIFEST:6", "x\\x01y"});
  ExpectRefused("lists itself", with(absl::StrReplaceAll(good, {{digest, digest}}) + digest + " 3 zzz\n"),
                {"zzz: missing"});
  ExpectRefused("order", with(good + digest + " 3 a\n"), {"MANIFEST:6", "not after"});
  ExpectRefused("twice", with(good + good.substr(good.rfind('\n', good.size() - 2) + 1)), {"MANIFEST:6", "not after"});
  ExpectRefused("size", replaced(" model", "9 model"), {"model.textproto: size is"});
  ExpectRefused("huge size", replaced(" model.textproto", "99999999999999999999 model.textproto"), {"MANIFEST:4"});
  ExpectRefused("leading zero",
                replaced(absl::StrCat(" ", whole_.at("model.textproto").size(), " m").c_str(),
                         absl::StrCat(" 0", whole_.at("model.textproto").size(), " m").c_str()),
                {"MANIFEST:4", "size"});
  ExpectRefused("version", replaced("manifest 1 ", "manifest 2 "), {"MANIFEST:1"});
  ExpectRefused("algorithm", replaced("xxh3-128", "md5"), {"MANIFEST:1"});
  ExpectRefused("other algorithm", replaced("xxh3-128", "sha256"), {"MANIFEST:2", "64 lower-case"});
  ExpectRefused("no line break at the end", with(good.substr(0, good.size() - 1)), {"MANIFEST", "cut short"});
  ExpectRefused("blank line", with(good + "\n"), {"MANIFEST:6"});
  ExpectRefused("carriage returns", replaced("\n", "\r\n"), {"MANIFEST:1"});
  ExpectRefused("huge", with(std::string(kManifestBytesMax + 1, '\n')), {"MANIFEST", "exceeds"});
  ExpectRefused("binary", with(std::string("\x00\xff\x00\n", 4)), {"MANIFEST:1"});
  for (const char* name :
       {"extra", "model.textproto.tmp.1", "calibration/x.textproto", "calibration/0.textproto",
        "calibration/01.textproto", "weights-00002-of-00002.safetensors", ".hidden", "MANIFEST.bak"}) {
    Files files = whole_;
    files[name] = "x";
    ExpectRefused(absl::StrCat("unlisted ", name), files, {name});
  }
}

TEST_F(Damage, LinksAndSpecialFiles) {
  for (const char* path : {"model.textproto", kWeights, "goldens.jsonl", "MANIFEST", "calibration/1.textproto"}) {
    TempDir dir;
    for (const auto& [name, content] : whole_) WriteAll(dir.path("v/" + name), content);
    fs::rename(dir.path(absl::StrCat("v/", path)), dir.path("outside"));
    fs::create_symlink(dir.path("outside"), dir.path(absl::StrCat("v/", path)));
    ExpectRefusedAt(absl::StrCat("link for ", path), dir.path("v"), {path, "symbolic link"});
    fs::remove(dir.path(absl::StrCat("v/", path)));
    fs::create_directory(dir.path(absl::StrCat("v/", path)));
    ExpectRefusedAt(absl::StrCat("folder for ", path), dir.path("v"), {path});
  }
}

TEST_F(Damage, TensorsThatAreWrong) {
  const LooseTensors all = Unpack();
  int n = 0;
  for (const auto& [name, tensor] : all) {
    // Every seventh tensor, each in turn of six ways.
    if (n++ % 7 != 0) continue;
    const std::string label = "tensor " + name + ": ";
    ExpectWrongTensors("missing " + name, [&](LooseTensors* t) { t->erase(name); }, {label, "missing"});
    ExpectWrongTensors("flattened " + name,
                       [&](LooseTensors* t) { (*t)[name].shape = absl::StrCat("[1,", tensor.data.size() / 4, "]"); },
                       {label, "expected shape " + tensor.shape, "found [1, "});
    ExpectWrongTensors("integers " + name, [&](LooseTensors* t) { (*t)[name].dtype = "I32"; }, {label, "found I32"});
    ExpectWrongTensors("renamed " + name,
                       [&](LooseTensors* t) {
                         (*t)[name + ".x"] = tensor;
                         t->erase(name);
                       },
                       {label, "missing"});
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      ExpectWrongTensors(absl::StrCat(bad, " in ", name),
                         [&](LooseTensors* t) {
                           std::string& data = (*t)[name].data;
                           std::memcpy(data.data() + 4 * Below(data.size() / 4), &bad, 4);
                         },
                         {kWeights, label, std::isnan(bad) ? "is NaN" : "is infinite"});
    }
    ExpectWrongTensors("short " + name, [&](LooseTensors* t) { (*t)[name].data.resize(tensor.data.size() - 4); },
                       {label, "bytes"});
    ExpectWrongTensors("overflowing " + name, [&](LooseTensors* t) { (*t)[name].shape = "[4611686018427387904,4]"; },
                       {label, "overflows"});
  }
  ExpectWrongTensors("extra",
                     [&](LooseTensors* t) {
                       (*t)["w.l2.c0.wq"] = {"F32", "[1]", std::string(4, '\0')};
                     },
                     {"tensor w.l2.c0.wq: not called for"});
  ExpectWrongTensors("none", [&](LooseTensors* t) { t->clear(); }, {"missing"});
}

TEST_F(Damage, HeadersThatLie) {
  const LooseTensors all = Unpack();
  const std::string good = Pack(all);
  uint64_t length;
  std::memcpy(&length, good.data(), 8);
  const std::string header = good.substr(8, length), data = good.substr(8 + length);
  const auto wrong = [&](const std::string& what, const std::string& raw, const std::string& why) {
    Files files = whole_;
    files[kWeights] = raw;
    ExpectWrong(what, files, {kWeights, why});
  };
  wrong("a hole at the end", good + '\0', "belong to no tensor");
  wrong("data cut", good.substr(0, good.size() - 1), "leave the");
  wrong("no header", good.substr(0, 7), "header");
  wrong("duplicate",
        WithHeader("{\"tok.p.b1\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}," + header.substr(1), data),
        "tensor tok.p.b1: named twice");
  wrong("not UTF-8", WithHeader(absl::StrReplaceAll(header, {{"tok.p.b1", "tok.p.\xc3\x28"}}), data),
        "not JSON in UTF-8");
  wrong("trailing", WithHeader(header + "x", data), "not JSON");
  wrong("nested", WithHeader(std::string(100'000, '['), data), "{");
  wrong("nested objects", WithHeader("{\"a\":" + std::string(100'000, '['), data), "tensor a");
  for (int i = 0; i < 12; ++i) {
    uint64_t lie = i < 4 ? random_() : Below(2 * good.size());
    if (lie == length) ++lie;
    std::string raw = good;
    std::memcpy(raw.data(), &lie, 8);
    wrong(absl::StrCat("header length ", lie), raw, "header");
  }
}

TEST_F(Damage, ContentThatIsWrong) {
  const auto with = [&](const char* path, const std::string& content) {
    Files files = whole_;
    files[path] = content;
    return files;
  };
  const std::string config = whole_.at("model.textproto"), goldens = whole_.at("goldens.jsonl");
  const auto config_with = [&](const char* from, const char* to) {
    const std::string changed = absl::StrReplaceAll(config, {{from, to}});
    EXPECT_NE(changed, config) << from;
    return with("model.textproto", changed);
  };
  ExpectWrong("unknown field", with("model.textproto", config + "colour: 1\n"), {"model.textproto:", "colour"});
  ExpectWrong("field twice", with("model.textproto", config + "d: 16\n"), {"model.textproto:", "d"});
  ExpectWrong("out of range", config_with("layers: 2", "layers: 65"), {"model.textproto", "layers: 65"});
  ExpectWrong("one layer fewer", config_with("layers: 2", "layers: 1"), {"tensor w.l1."});
  ExpectWrong("one layer more", config_with("layers: 2", "layers: 3"), {"tensor w.l2.", "missing"});
  ExpectWrong("wider", config_with("\nd: 16", "\nd: 17"), {"tensor ", "expected shape", "found"});
  ExpectWrong("latent", config_with("latent: 0", "latent: 4"), {".wd: missing"});
  ExpectWrong("no mixing", config_with("target_mixing: true", "target_mixing: false"), {"tensor w.l0.gate."});
  ExpectWrong("vocab", config_with("vocab: 64", "vocab: 65"), {"tensor tok.table.item", "expected shape [65, 8]"});
  ExpectWrong("another salt", config_with("hash_salt: 0", "hash_salt: 1"), {"golden case"});
  ExpectWrong("other norm", config_with("norm: POST", "norm: PRE"), {"golden case"});
  ExpectWrong("binary configuration", with("model.textproto", std::string("\x08\x00\xff", 3)), {"model.textproto:1"});
  ExpectWrong("no goldens", with("goldens.jsonl", "\n\n"), {"goldens.jsonl", "no case"});
  ExpectWrong("goldens without logits",
              with("goldens.jsonl", absl::StrReplaceAll(goldens, {{"\"logits\"", "\"logit\""}})),
              {"goldens.jsonl:1", "logit: unknown key"});
  ExpectWrong("golden twice", with("goldens.jsonl", goldens + goldens), {"goldens.jsonl:5", "twice"});
  ExpectWrong("golden of another user's past",
              with("goldens.jsonl", absl::StrReplaceAll(goldens, {{"\"feed\"", "\"shop\""}})), {"golden case"});
  ExpectWrong("calibration", with("calibration/1.textproto", "version: 1 entries { task: 'click' a: -1 }"),
              {"calibration/1.textproto", "a: -1"});
  ExpectWrong("calibration of another number", with("calibration/1.textproto", "version: 2"),
              {"calibration/1.textproto", "version: 2"});
  Files files = whole_;
  files["weights-00001-of-00002.safetensors"] = files[kWeights];
  files.erase(kWeights);
  ExpectWrong("half of the weights", files, {kWeights, "missing"});
  for (const float shift : {0.01f, -0.01f, 1.0f, -100.0f}) {
    ExpectWrongTensors(absl::StrCat("head shifted by ", shift),
                       [&](LooseTensors* t) { std::memcpy((*t)["w.head.b2"].data.data(), &shift, 4); },
                       {"golden case \"empty_history\": logit[0][0]: expected"});
  }
}

}  // namespace
}  // namespace backstory::grab
