// A table that owns what BatchRows only views, filled at random or by hand.
#ifndef BACKSTORY_TESTS_SERVING_ENGINE_BATCH_TABLE_H_
#define BACKSTORY_TESTS_SERVING_ENGINE_BATCH_TABLE_H_

#include <cstdint>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "serving/engine/batch/batch_scorer.h"

namespace backstory::testing {

struct TableRow {
  std::string user = "a";
  uint64_t item = 1;
  int64_t time_us = 1;
  int64_t as_of_us = -1;     // -1: missing
  int64_t known_by_us = -1;  // -1: missing
  std::string ns, scene;
  uint64_t request_id = 0;
  double age = std::numeric_limits<double>::infinity();  // infinity: missing
  std::string device;
  float bid = std::numeric_limits<float>::infinity();  // infinity: missing
  std::string source;
};

// Columns of rows. Not copyable: the views point into it.
class Table {
 public:
  explicit Table(const std::vector<TableRow>& rows) {
    for (size_t i = 0; i < rows.size(); ++i) Add(rows[i], i);
    view.rows = rows.size();
    view.users = users_, view.namespaces = ns_, view.scenes = scenes_;
    view.items.values = items_, view.times_us.values = times_, view.request_ids.values = requests_;
    view.as_of_us = {as_of_, {as_of_bits_.data()}};
    view.known_by_us = {known_by_, {known_by_bits_.data()}};
    view.request_numbers = {{"age", std::span<const double>(age_), {age_bits_.data()}}};
    view.candidate_numbers = {{"bid", std::span<const float>(bid_), {bid_bits_.data()}}};
    view.request_texts = {{"device", devices_}};
    view.candidate_texts = {{"source", sources_}};
  }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  BatchRows view;

 private:
  static void SetBit(std::vector<uint8_t>* bits, size_t row, bool there) {
    bits->resize(row / 8 + 1);
    if (there) (*bits)[row / 8] |= static_cast<uint8_t>(1u << row % 8);
  }
  std::string_view Keep(const std::string& text) { return texts_.emplace_back(text); }

  void Add(const TableRow& row, size_t i) {
    users_.push_back(Keep(row.user));
    ns_.push_back(Keep(row.ns));
    scenes_.push_back(Keep(row.scene));
    devices_.push_back(Keep(row.device));
    sources_.push_back(Keep(row.source));
    items_.push_back(row.item);
    times_.push_back(row.time_us);
    requests_.push_back(row.request_id);
    as_of_.push_back(row.as_of_us);
    known_by_.push_back(row.known_by_us);
    age_.push_back(row.age);
    bid_.push_back(row.bid);
    SetBit(&as_of_bits_, i, row.as_of_us >= 0);
    SetBit(&known_by_bits_, i, row.known_by_us >= 0);
    SetBit(&age_bits_, i, row.age != std::numeric_limits<double>::infinity());
    SetBit(&bid_bits_, i, row.bid != std::numeric_limits<float>::infinity());
  }

  std::deque<std::string> texts_;  // does not move its elements
  std::vector<std::string_view> users_, ns_, scenes_, devices_, sources_;
  std::vector<uint64_t> items_, requests_;
  std::vector<int64_t> times_, as_of_, known_by_;
  std::vector<double> age_;
  std::vector<float> bid_;
  std::vector<uint8_t> as_of_bits_, known_by_bits_, age_bits_, bid_bits_;
};

}  // namespace backstory::testing

#endif  // BACKSTORY_TESTS_SERVING_ENGINE_BATCH_TABLE_H_
