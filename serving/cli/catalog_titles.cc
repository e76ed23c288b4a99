#include "serving/cli/catalog_titles.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backstory/v1/catalog.grpc.pb.h"
#include "fmt/format.h"

namespace backstory {

Titles::Titles(const ClientOptions& client, const std::shared_ptr<grpc::Channel>& channel, const std::string& ns,
               std::vector<uint64_t> ids) {
  constexpr size_t kIdsMax = 10'000;
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  ids.resize(std::min(ids.size(), kIdsMax));
  if (ids.empty()) return;
  v1::GetItemsRequest request;
  request.set_namespace_(ns);
  request.mutable_item_ids()->Assign(ids.begin(), ids.end());
  v1::GetItemsResponse response;
  auto context = client.Context();
  if (!v1::Catalog::NewStub(channel)->Get(context.get(), request, &response).ok()) return;
  for (auto& item : *response.mutable_items()) titles_[item.item_id()] = std::move(*item.mutable_title());
}

std::string Titles::Of(uint64_t item) const {
  const auto it = titles_.find(item);
  return it == titles_.end() || it->second.empty() ? absl::StrCat("item ", item) : it->second;
}

void PrintExplanation(const v1::Explanation& explanation, const Titles& titles, bool channels) {
  for (const auto& event : explanation.events()) {
    const int64_t days = event.time_us() / 86'400'000'000;
    const std::string of = channels ? fmt::format(" of channel {}", event.channel()) : "";
    fmt::print("      {:5.1f} %{}: {} (day {})\n", 100 * event.mass(), of, titles.Of(event.item_id()), days);
  }
}

}  // namespace backstory
