// Titles of items for what a command prints.
#ifndef BACKSTORY_SERVING_CLI_CATALOG_TITLES_H_
#define BACKSTORY_SERVING_CLI_CATALOG_TITLES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "backstory/v1/ranking.pb.h"
#include "serving/cli/client_options.h"

namespace backstory {

class Titles {
 public:
  // Asks the catalog of a namespace, at most 10,000 ids. Titles are decoration: if it does not answer, ids do.
  Titles(const ClientOptions& client, const std::shared_ptr<grpc::Channel>& channel, const std::string& ns,
         std::vector<uint64_t> ids);
  std::string Of(uint64_t item) const;  // "item 7" if unknown or without one

 private:
  std::unordered_map<uint64_t, std::string> titles_;
};

// One line per event, indented. `channels`: the shares are of a channel each.
void PrintExplanation(const v1::Explanation& explanation, const Titles& titles, bool channels);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_CATALOG_TITLES_H_
