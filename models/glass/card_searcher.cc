#include "models/glass/card_searcher.h"

#include <condition_variable>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/glass/cuda/user.h"

namespace backstory::glass {
namespace {

struct CardUser final : EncodedUser {
  size_t bytes() const override { return user.bytes() + (on_cpu == nullptr ? 0 : on_cpu->bytes()); }
  CudaUser user;
  std::unique_ptr<const EncodedUser> on_cpu;  // null while the card is trusted: a search on the CPU encodes for itself
};

}  // namespace

absl::StatusOr<std::shared_ptr<const CudaTrie>> CardTries::Of(const Catalogue& catalogue) {
  std::lock_guard lock(mutex_);
  const auto found = tries_.find(&catalogue);
  if (found != tries_.end() && !found->second.catalogue.expired()) return found->second.trie;
  std::erase_if(tries_, [](const auto& held) { return held.second.catalogue.expired(); });
  auto made = make_(catalogue.trie());
  // Nobody can tell when a catalogue that no shared_ptr owns goes: its trie is not kept.
  if (made.ok() && !catalogue.weak_from_this().expired()) tries_[&catalogue] = {catalogue.weak_from_this(), *made};
  return made;
}

// One call of Search that waits for the card.
struct CardSearcher::Caller {
  std::vector<CudaGlassRequest> requests;
  std::vector<std::shared_ptr<const CudaTrie>> tries;  // keeps those of `requests` alive
  std::vector<CudaGlassReply> replies;
  absl::Status status;
  bool done = false, leads = false;  // guarded by mutex_
  std::condition_variable changed;
};

CardSearcher::CardSearcher(std::unique_ptr<const CudaGlass> card, std::shared_ptr<const Network> network,
                           ThreadPool* pool, CardSearcherOptions options)
    : card_(std::move(card)),
      cpu_(MakeCpuSearcher(std::move(network), pool)),
      options_(std::move(options)),
      tries_(options_.make_trie) {}

std::unique_ptr<const EncodedUser> CardSearcher::Encode(const Catalogue& catalogue, const History& history) const {
  auto user = std::make_unique<CardUser>();
  user->user = MakeCudaUser(catalogue, history);
  if (options_.fall_back && !options_.health().ok()) user->on_cpu = cpu_->Encode(catalogue, history);
  return user;
}

bool CardSearcher::Outdated(const EncodedUser& user) const {
  return options_.fall_back && static_cast<const CardUser&>(user).on_cpu == nullptr && !options_.health().ok();
}

size_t CardSearcher::waiting() const {
  std::lock_guard lock(mutex_);
  return waiting_.size();
}

absl::Status CardSearcher::Search(std::span<const UserSearch> requests, std::span<std::vector<Beam>> beams) const {
  std::vector<size_t> on_card, on_cpu;
  for (size_t i = 0; i < requests.size(); ++i) {
    const bool fits = requests[i].beam <= options_.beam_max;
    if (!fits && options_.fell_back) options_.fell_back(1);  // explanations are the CPU's anyway
    (fits && requests[i].steering == nullptr ? on_card : on_cpu).push_back(i);
  }
  absl::Status status = on_card.empty() ? absl::OkStatus() : SearchOnCard(requests, on_card, beams);
  if (!status.ok() && options_.fall_back) {
    if (options_.fell_back) options_.fell_back(on_card.size());
    on_cpu.insert(on_cpu.end(), on_card.begin(), on_card.end());
    status = absl::OkStatus();
  }
  for (size_t i = 0; i < on_cpu.size() && status.ok(); ++i)
    status = SearchOnCpu(requests[on_cpu[i]], &beams[on_cpu[i]]);
  return status;
}

absl::Status CardSearcher::SearchOnCpu(const UserSearch& request, std::vector<Beam>* beams) const {
  UserSearch on_cpu = request;
  std::unique_ptr<const EncodedUser> own;
  on_cpu.user = static_cast<const CardUser*>(request.user)->on_cpu.get();
  if (on_cpu.user == nullptr) {
    own = cpu_->Encode(*request.catalogue, *request.history);
    on_cpu.user = own.get();
  }
  return cpu_->Search({&on_cpu, 1}, {beams, 1});
}

absl::Status CardSearcher::SearchOnCard(std::span<const UserSearch> requests, std::span<const size_t> which,
                                        std::span<std::vector<Beam>> beams) const {
  if (absl::Status health = options_.health(); !health.ok()) return health;
  Caller caller;
  for (const size_t i : which) {
    auto trie = tries_.Of(*requests[i].catalogue);
    if (!trie.ok()) return trie.status();
    caller.requests.push_back({.user = &static_cast<const CardUser*>(requests[i].user)->user,
                               .beam = requests[i].beam,
                               .mode = SearchMode::kValid,
                               .trie = trie->get()});
    caller.tries.push_back(*std::move(trie));
  }
  caller.replies.resize(which.size());
  RunTogether(&caller);
  if (!caller.status.ok()) return caller.status;
  for (size_t i = 0; i < which.size(); ++i) beams[which[i]] = std::move(caller.replies[i].beams);
  return absl::OkStatus();
}

// Whoever finds a lane free launches for itself and for all that wait, once, and then hands the lane to the one who has
// waited longest: nobody works for others once the own answer is there, and a lane is idle only while nobody waits.
void CardSearcher::RunTogether(Caller* own) const {
  std::unique_lock lock(mutex_);
  if (leaders_ < options_.lanes) {
    ++leaders_;
  } else {
    waiting_.push_back(own);
    own->changed.wait(lock, [own] { return own->done || own->leads; });
    if (own->done) return;
  }
  std::vector<Caller*> together = {own};  // who leads does not wait any more: no other lane can take it
  for (size_t users = own->requests.size(); !waiting_.empty(); waiting_.pop_front()) {
    users += waiting_.front()->requests.size();
    if (users > options_.users_max) break;
    together.push_back(waiting_.front());
  }
  lock.unlock();
  Launch(together);
  lock.lock();
  for (Caller* caller : together) {
    if (caller == own) continue;
    caller->done = true;
    caller->changed.notify_one();  // under the lock: it may be gone as soon as it knows
  }
  if (waiting_.empty()) {
    --leaders_;
    return;
  }
  Caller* const next = waiting_.front();
  waiting_.pop_front();
  next->leads = true;
  next->changed.notify_one();
}

void CardSearcher::Launch(std::span<Caller* const> callers) const {
  if (callers.size() == 1) {
    callers[0]->status = card_->Search(callers[0]->requests, callers[0]->replies);
    if (callers[0]->status.ok() && options_.launched) options_.launched(callers[0]->requests.size());
    return;
  }
  std::vector<CudaGlassRequest> requests;
  for (const Caller* caller : callers) {
    requests.insert(requests.end(), caller->requests.begin(), caller->requests.end());
  }
  std::vector<CudaGlassReply> replies(requests.size());
  const absl::Status status = card_->Search(requests, replies);
  if (status.ok() && options_.launched) options_.launched(requests.size());
  size_t next = 0;
  for (Caller* caller : callers) {
    caller->status = status;
    for (CudaGlassReply& reply : caller->replies) reply = std::move(replies[next++]);
  }
}

absl::StatusOr<std::unique_ptr<const Searcher>> CardOrCpu(absl::StatusOr<std::unique_ptr<const CudaGlass>> card,
                                                          std::shared_ptr<const Network> network, ThreadPool* pool,
                                                          CardSearcherOptions options,
                                                          const std::function<void(const std::string&)>& log) {
  if (card.ok()) {
    return std::make_unique<CardSearcher>(*std::move(card), std::move(network), pool, std::move(options));
  }
  if (!options.fall_back) return card.status();
  if (log) {
    log(absl::StrCat("model ", network->config().name, ": the CPU recommends: ", std::string(card.status().message())));
  }
  return MakeCpuSearcher(std::move(network), pool);
}

}  // namespace backstory::glass
