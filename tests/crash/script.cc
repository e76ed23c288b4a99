#include "tests/crash/script.h"

#include <algorithm>
#include <filesystem>

namespace backstory {
namespace {

constexpr int64_t kScriptNow = int64_t{1'700'000'000} * 1'000'000;
constexpr int kImportedUsers = 6;
constexpr uint64_t kKeep = 100;

enum class Step : uint64_t {
  kAppendSmall,
  kAppendBuffered,
  kAppendLarge,
  kAppendAlias,
  kMerge,
  kDeleteItem,
  kDeleteIds,
  kAppendGone,
  kDeleteUser,
  kImport,
  kRetain,
  kCheckpoint,
  kAppendLate,
  kCompact,
};
static_assert(static_cast<uint64_t>(Step::kCompact) + 1 == kScriptPeriod);

Step StepOf(uint64_t n) { return static_cast<Step>(n % kScriptPeriod); }

std::string Numbered(const char* name, uint64_t n) {
  std::string text = name;
  text += std::to_string(n);
  return text;
}

UserKey Key(const std::string& user) { return {"shop", user}; }

std::vector<Event> Batch(uint64_t n, size_t rows) {
  std::vector<Event> events;
  for (uint64_t i = 0; i < rows; ++i) {
    Event e;
    e.kind = EventKind::kAction;
    e.action = ActionType::kRating;
    e.value = static_cast<float>(i % 10) / 2;
    e.event_id = n << 16 | (i + 1);
    e.item_id = (n * 31 + i) % 97;
    e.time_us = static_cast<int64_t>(n * 10'000 + i + 1) * 1'000;
    events.push_back(e);
  }
  return events;
}

// Older than what the batches before hold.
std::vector<Event> LateBatch(uint64_t n) {
  std::vector<Event> events = Batch(n, 20);
  for (Event& e : events) e.time_us /= 2;
  return events;
}

size_t RowsOf(Step step) {
  switch (step) {
    case Step::kAppendLarge:
      return 2'100;
    case Step::kAppendBuffered:
      return 300;
    default:
      return 30;
  }
}

const char* UserOf(Step step) {
  switch (step) {
    case Step::kAppendLarge:
    case Step::kRetain:
      return "long";
    case Step::kAppendBuffered:
    case Step::kMerge:
      return "merged";
    default:
      return "edited";
  }
}

std::vector<uint64_t> IdsToDelete(uint64_t n) {  // half of this round's first batch
  std::vector<uint64_t> ids;
  for (const Event& e : Batch(n / kScriptPeriod * kScriptPeriod, RowsOf(Step::kAppendSmall))) {
    if (e.event_id % 2 == 0) ids.push_back(e.event_id);
  }
  return ids;
}

std::string ImportedUser(int i) { return Numbered("{imported}", static_cast<uint64_t>(i)); }
std::vector<Event> ImportedBatch(int i) { return Batch(900'000 + static_cast<uint64_t>(i), 400); }

absl::Status Append(HistoryStore* store, const std::string& user, const std::vector<Event>& events, Durability how) {
  return store->Append(Key(user), events, kScriptNow, how).status();
}

}  // namespace

absl::StatusOr<std::string> MakeSlotStream(const std::string& directory) {
  StoreOptions options;
  options.directory = directory;
  absl::StatusOr<std::unique_ptr<HistoryStore>> store = OpenHistoryStore(options);
  if (!store.ok()) return store.status();
  for (int i = 0; i < kImportedUsers; ++i) {
    absl::Status status = Append(store->get(), ImportedUser(i), ImportedBatch(i), Durability::kSynced);
    if (!status.ok()) return status;
  }
  std::string stream;
  const absl::Status exported = (*store)->ExportSlot(SlotOf(ImportedUser(0)), [&stream](std::string_view chunk) {
    stream += chunk;
    return absl::OkStatus();
  });
  if (!exported.ok()) return exported;
  return stream;
}

absl::Status DoOperation(uint64_t n, const std::string& directory, const std::string& slot_stream,
                         HistoryStore* store) {
  const Step step = StepOf(n);
  const uint64_t round = n / kScriptPeriod;
  const std::string alias = Numbered("alias", round), gone = Numbered("gone", round);
  switch (step) {
    case Step::kAppendSmall:
    case Step::kAppendLarge:
      return Append(store, UserOf(step), Batch(n, RowsOf(step)), Durability::kSynced);
    case Step::kAppendBuffered:
      return Append(store, UserOf(step), Batch(n, RowsOf(step)), Durability::kBuffered);
    case Step::kAppendLate:
      return Append(store, UserOf(step), LateBatch(n), Durability::kSynced);
    case Step::kAppendAlias:
      return Append(store, alias, Batch(n, RowsOf(step)), Durability::kSynced);
    case Step::kMerge:
      return store->Merge(Key(alias), Key(UserOf(step)), kScriptNow);
    case Step::kDeleteItem:
      return store->Delete(Key(UserOf(step)), {.item_id = round % 97, .has_item = true}, kScriptNow).status();
    case Step::kDeleteIds:
      return store->Delete(Key(UserOf(step)), {.event_ids = IdsToDelete(n)}, kScriptNow).status();
    case Step::kAppendGone:
      return Append(store, gone, Batch(n, RowsOf(step)), Durability::kSynced);
    case Step::kDeleteUser:
      return store->Delete(Key(gone), {.all = true}, kScriptNow).status();
    case Step::kImport: {
      size_t sent = 0;
      return store->ImportSlot(SlotOf(ImportedUser(0)), [&]() -> absl::StatusOr<std::string> {
        const std::string chunk = slot_stream.substr(sent, 1'000);
        sent += chunk.size();
        return chunk;
      });
    }
    case Step::kRetain:
      return store->Retain(Key(UserOf(step)), kKeep).status();
    case Step::kCheckpoint: {
      const std::string target = directory + ".checkpoint";
      std::filesystem::remove_all(target);
      return store->Checkpoint(target);
    }
    case Step::kCompact:
      return store->Compact();
  }
  return absl::InternalError("no such step");
}

bool ScriptModel::IsImport(uint64_t n) { return StepOf(n) == Step::kImport; }

void ScriptModel::Add(const std::string& user, const std::vector<Event>& events) {
  std::vector<Event>& all = users_[user].events;
  all.insert(all.end(), events.begin(), events.end());
  std::sort(all.begin(), all.end(), CanonicalLess);
}

void ScriptModel::Do(uint64_t n) {
  const Step step = StepOf(n);
  const uint64_t round = n / kScriptPeriod;
  const std::string alias = Numbered("alias", round), gone = Numbered("gone", round);
  User& user = users_[UserOf(step)];
  switch (step) {
    case Step::kAppendSmall:
    case Step::kAppendLarge:
    case Step::kAppendBuffered:
      return Add(UserOf(step), Batch(n, RowsOf(step)));
    case Step::kAppendLate:
      return Add(UserOf(step), LateBatch(n));
    case Step::kAppendAlias:
      return Add(alias, Batch(n, RowsOf(step)));
    case Step::kMerge:
      Add(UserOf(step), users_[alias].events);
      users_.erase(alias);
      alias_of_[alias] = UserOf(step);
      return;
    case Step::kDeleteItem:
      std::erase_if(user.events, [round](const Event& e) { return e.item_id == round % 97; });
      return;
    case Step::kDeleteIds:
      for (const uint64_t id : IdsToDelete(n)) {
        std::erase_if(user.events, [id](const Event& e) { return e.event_id == id; });
      }
      return;
    case Step::kAppendGone:
      return Add(gone, Batch(n, RowsOf(step)));
    case Step::kDeleteUser:
      users_[gone].events.clear();
      return;
    case Step::kImport:
      for (int i = 0; i < kImportedUsers; ++i) users_[ImportedUser(i)].events = ImportedBatch(i);
      return;
    case Step::kRetain: {
      if (user.events.size() <= kKeep) return;
      const uint64_t cut = (user.first_index + user.events.size() - kKeep) / 4096 * 4096;
      if (cut <= user.first_index) return;
      user.events.erase(user.events.begin(),
                        user.events.begin() + static_cast<std::ptrdiff_t>(cut - user.first_index));
      user.first_index = cut;
      return;
    }
    case Step::kCheckpoint:
    case Step::kCompact:
      return;
  }
}

std::map<std::string, std::vector<Event>> ScriptModel::Read() const {
  std::map<std::string, std::vector<Event>> read;
  for (const auto& [name, user] : users_) read[name] = user.events;
  for (const auto& [alias, primary] : alias_of_) read[alias] = users_.at(primary).events;
  for (int i = 0; i < kImportedUsers; ++i) read[ImportedUser(i)];  // empty before the import
  return read;
}

}  // namespace backstory
