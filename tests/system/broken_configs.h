// More than 200 ways to break the text of a running experiment configuration: every one must be refused while it runs.
#ifndef BACKSTORY_TESTS_SYSTEM_BROKEN_CONFIGS_H_
#define BACKSTORY_TESTS_SYSTEM_BROKEN_CONFIGS_H_

#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace backstory {

// `good` is the text of kRunning in experiments_test.cc, whose lines are known here.
inline std::vector<std::string> BrokenConfigs(const std::string& good) {
  std::vector<std::string> broken;
  const auto swap = [&](const std::string& what, const std::vector<std::string>& with) {
    const size_t at = good.find(what);
    for (const std::string& text : with) broken.push_back(std::string(good).replace(at, what.size(), text));
  };
  swap("hash_version: 1", {"hash_version: 0", "hash_version: 2", "hash_version: -1", "hash_version: x"});
  swap("buckets { first: 0 count: 500 }", {"buckets { first: 0 count: 499 }", "buckets { first: -1 count: 500 }",
                                           "buckets { first: 9900 count: 500 }", "unit: PLANET", "salt: \"new\""});
  swap("buckets { first: 0 count: 10000 }",
       {"buckets { first: 0 count: 9000 }", "buckets { first: 1 count: 10000 }", "buckets { first: 0 count: 0 }",
        "buckets { first: 0 count: -5 }", "buckets { first: 0 count: 9223372036854775807 }", "buckets { count: 1e9 }"});
  swap("name: \"main\"", {"name: \"\"", "name: \"Main\"", "name: \"a b\"", "name: \"" + std::string(65, 'x') + "\""});
  swap("name: \"length\"", {"name: \"\"", "name: \"Length\"", "name: \"holdout\"", "name: \"other\""});
  swap("name: \"short-history\"", {"name: \"\"", "name: \"Short\"", "name: \"holdout\"", "name: \"other\""});
  swap("name: \"short\"", {"name: \"\"", "name: \"control\"", "name: \"other\"", "name: \"dot.dot\""});
  swap("parameter: \"history_rows\"", {"parameter: \"history_row\"", "parameter: \"threads\"", "parameter: \"\"",
                                       "parameter: \"history_rows\" parameter: \"history_rows\""});
  swap("state: RUNNING", {"state: DRAFT", "state: BOGUS", "state: 7", "state:"});
  swap("ramp: 5000", {"ramp: 4999", "ramp: 0", "ramp: -1", "ramp: 10001", "ramp: \"5000\""});
  swap("weight: 5000", {"weight: 0", "weight: -1", "weight: 4999", "weight: 5001", "weight: 10001"});
  swap("value: \"16\"", {"value: \"\"", "value: \"-1\"", "value: \"ten\"", "value: \"1.5\"", "value: \"nan\"",
                         "value: 16", "value: \"99999999999999999999\"", "value: \"17\""});
  for (const char* expression : {"scene", "scene = 'x'", "(true", "nobody == 'x'", "scene < 'x'", "features.x in []",
                                 "user == 4", "scene == 'home'"}) {
    swap("ramp: 5000", {"ramp: 5000 targeting: \"" + std::string(expression) + "\""});
  }
  std::vector<std::string> lines;
  std::istringstream in(good);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  const auto joined = [&](size_t skip, size_t insert_after, const std::string& extra) {
    std::string text;
    for (size_t i = 0; i < lines.size(); ++i) {
      if (i != skip) text += lines[i] + "\n";
      if (i == insert_after) text += extra + "\n";
    }
    return text;
  };
  for (size_t i = 0; i < lines.size(); ++i) {
    broken.push_back(joined(i, SIZE_MAX, ""));            // a line is missing
    broken.push_back(joined(SIZE_MAX, i, "no_such: 1"));  // a field that does not exist
    broken.push_back(joined(SIZE_MAX, i, "\x01 garbage"));
  }
  for (size_t size = 0; size + 3 < good.size(); size += 5) broken.push_back(good.substr(0, size));  // cut short
  return broken;
}

}  // namespace backstory

#endif  // BACKSTORY_TESTS_SYSTEM_BROKEN_CONFIGS_H_
