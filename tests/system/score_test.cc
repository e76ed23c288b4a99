// `backstory score` against the real server: every row of a file has the bits that Ranking.Rank gave over gRPC.
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <random>

#include "features/io/csv.h"
#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

constexpr int64_t kStart = 1'600'000'000'000'000, kMinute = 60'000'000;

struct Row {
  std::string user;
  uint64_t item = 0;
  int64_t time_us = 0;
  uint64_t request_id = 0;
};

std::vector<std::vector<std::string>> Records(const std::filesystem::path& path) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::vector<std::string>> records;
  for (CsvReader csv({text, 1}); csv.Next();) records.emplace_back(csv.fields().begin(), csv.fields().end());
  return records;
}

// Exposures a minute apart, every third clicked, some of them members of one request; late clicks change what is known.
void Fill(SystemClient* client, const std::string& user, int events, std::mt19937* random) {
  std::vector<v1::Event> past;
  for (int i = 0; i < events; ++i) {
    const uint64_t id = 1 + 2 * static_cast<uint64_t>(i), item = 1 + (*random)() % 50;
    past.push_back(Exposure(id, kStart + i * kMinute, item));
    if ((*random)() % 4 == 0) past.back().set_request_id(1 + (*random)() % 10);
    if (i % 3 == 0) past.push_back(Click(id + 1, kStart + i * kMinute + (*random)() % (20 * kMinute), item, id));
  }
  const auto [status, response] = client->Append(user, past);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.accepted(), past.size());
}

TEST(Score, AFileHasTheBitsOfTheServer) {
  ScratchDir scratch;
  ServerProcess server(
      {.store = scratch.path() / "store", .models = {}, .arguments = {"--create-store"}, .environment = {}});
  ASSERT_TRUE(server.Start()) << server.log();
  std::mt19937 random(5);
  std::vector<Row> rows;
  std::vector<v1::RankResponse> online;
  {
    SystemClient client(server.Connect());
    for (const char* user : {"anna", "bob", "carl"}) Fill(&client, user, 200, &random);
    for (int i = 0; i < 200; ++i) {
      const char* users[] = {"anna", "bob", "carl", "nobody"};
      rows.push_back({users[random() % 4], 1 + random() % 60, kStart + static_cast<int64_t>(random() % 260) * kMinute,
                      random() % 5 == 0 ? 1 + random() % 10 : 0});
      const auto [status, response] = client.Rank(rows[i].user, rows[i].time_us, {rows[i].item}, rows[i].request_id);
      ASSERT_TRUE(status.ok()) << status.error_message();
      online.push_back(response);
    }
  }
  server.Signal(SIGTERM);
  ASSERT_EQ(server.Wait().code, 0) << server.log();
  {
    std::ofstream file(scratch.path() / "rows.csv");
    file << "user,item_id,time_us,request_id\n";
    for (const Row& row : rows) {
      file << row.user << "," << row.item << "," << row.time_us << "," << row.request_id << "\n";
    }
  }
  for (const char* threads : {"1", "2"}) {
    const std::filesystem::path scores = scratch.path() / (std::string("scores") + threads + ".csv");
    std::string output;
    const ExitState state =
        RunBinary({"score", "--store", (scratch.path() / "store").string(), "--models", server.models().string(),
                   "--namespace", kSystemNamespace, "--input", (scratch.path() / "rows.csv").string(), "--output",
                   scores.string(), "--threads", threads, "--rows-per-part", "70"},
                  &output);
    ASSERT_EQ(state.code, 0) << output;
    const auto records = Records(scores);
    ASSERT_EQ(records.size(), rows.size() + 1);
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::vector<std::string>& record = records[i + 1];
      ASSERT_EQ(record[0], std::to_string(i));
      ASSERT_EQ(record[1], rows[i].user);
      ASSERT_EQ(std::strtof(record[4].c_str(), nullptr), online[i].scores(0).calibrated(0)) << "row " << i;
      ASSERT_EQ(std::strtof(record[5].c_str(), nullptr), online[i].scores(0).raw_logit(0)) << "row " << i;
      EXPECT_EQ(record[7], online[i].unknown_user() ? "1" : "0");
    }
  }
}

}  // namespace
}  // namespace backstory
