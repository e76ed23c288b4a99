#include "models/glass/cuda/lane.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace backstory::glass::cuda {
namespace {

int RoundUpToPower(size_t n) { return static_cast<int>(std::bit_ceil(std::max<size_t>(n, 1))); }
size_t Size(int n) { return static_cast<size_t>(n); }
size_t Aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }
int GroupsOf(size_t beam, int rows) { return static_cast<int>((beam + Size(rows) - 1) / Size(rows)); }
size_t InputHeader(const Batch& batch) {
  return Aligned(Size(batch.users) * sizeof(UserInput)) + Aligned(Size(batch.groups) * sizeof(Group));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Lane>> Lane::Create(const Config& config, const Model& model, const Limits& limits,
                                                   std::shared_ptr<grab::CudaDevice> device) {
  std::unique_ptr<Lane> lane(new Lane(config, model, std::move(device)));
  const size_t users = Size(RoundUpToPower(limits.users)), rows = Size(RoundUpToPower(limits.rows)) * 2;
  size_t bytes = 0;
  std::vector<std::pair<void**, size_t>> places;
  const auto place = [&](auto** to, size_t size) {
    places.emplace_back(reinterpret_cast<void**>(to), bytes);
    bytes += Aligned(size);
  };
  Batch& b = lane->batch_;
  place(&b.keys, users * KeyElements(model) * 2);
  place(&b.values, users * KeyElements(model) * 2);
  place(&b.self_kv, Size(model.decoder_layers) * 3 * rows * Size(model.heads) * 64 * 4);
  place(&b.logits, rows * Size((model.vocabulary + 7) / 8 * 8) * 4);
  place(&b.lse, rows * 4);
  const size_t output = 3 * rows * sizeof(Step) + 3 * users * 4;
  place(&lane->output_, output);
  auto memory = lane->device_->Allocate(bytes, "a lane of generative searches");
  if (!memory.ok()) return memory.status();
  lane->memory_ = *std::move(memory);
  for (const auto& [to, at] : places) *to = lane->memory_.as<char>(at);
  auto pinned = lane->device_->Allocate(output, "a lane's beams", grab::CudaBuffer::Place::kPinned);
  if (!pinned.ok()) return pinned.status();
  lane->pinned_output_ = *std::move(pinned);
  if (absl::Status status = lane->GrowInputs(size_t{1} << 20); !status.ok()) return status;
  // Keys that no user has written are read and weighed with zero: they must be numbers.
  for (const cudaError_t error :
       {cudaMemset(lane->memory_.data(), 0, bytes), cudaStreamCreateWithFlags(&lane->stream_, cudaStreamNonBlocking),
        cudaDeviceSynchronize()}) {
    if (absl::Status status = lane->device_->Check(error, "making a lane of generative searches"); !status.ok())
      return status;
  }
  return lane;
}

Lane::~Lane() {
  for (auto& [key, program] : programs_) {
    if (program.graph != nullptr) static_cast<void>(cudaGraphExecDestroy(program.graph));
  }
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
}

// Graphs hold the address of the inputs, so they go with them.
absl::Status Lane::GrowInputs(size_t bytes) {
  if (bytes <= input_.bytes()) return absl::OkStatus();
  for (auto& [key, program] : programs_) static_cast<void>(cudaGraphExecDestroy(program.graph));
  programs_.clear();
  bytes = std::bit_ceil(bytes);
  auto card = device_->Allocate(bytes, "inputs of generative searches");
  if (!card.ok()) return card.status();
  auto pinned = device_->Allocate(bytes, "inputs of generative searches", grab::CudaBuffer::Place::kPinned);
  if (!pinned.ok()) return pinned.status();
  input_ = *std::move(card), pinned_input_ = *std::move(pinned);
  return absl::OkStatus();
}

// Measured on an H100 (tests/bench/RESULTS.md): the fastest layout whose blocks run all at once, seven clusters of
// encoder blocks in the narrow one and 15, 31 or 66 of 8, 4 or 2 decoder blocks.
Layout Lane::LayoutOf(std::span<const CudaGlassRequest> requests) const {
  constexpr int kNarrowUsers = 7, kClustersOf8 = 15, kClustersOf4 = 31;
  const auto groups = [&](int rows) {
    int sum = 0;
    for (const CudaGlassRequest& request : requests) sum += GroupsOf(request.beam, rows);
    return sum;
  };
  Layout layout;
  if (model_.parts == 1) {
    layout.encode_rows = requests.size() <= kNarrowUsers ? 16 : 32;
    layout.group_rows = groups(16) <= kClustersOf8 ? 16 : 32;
  }
  const int clusters = groups(layout.group_rows);
  layout.cluster = clusters <= kClustersOf8 ? 8 : clusters <= kClustersOf4 ? 4 : 2;
  return layout;
}

absl::StatusOr<const Lane::Program*> Lane::ProgramOf(int users, int groups, const Layout& layout) {
  const std::tuple<int, int, int> key{users, groups,
                                      layout.group_rows * 100 + layout.encode_rows * 10 + layout.cluster};
  Program& program = programs_[key];
  if (program.graph != nullptr) return &program;
  program.batch = batch_, program.layout = layout;
  Batch& b = program.batch;
  b.users = users, b.groups = groups, b.rows_max = groups * layout.group_rows;
  b.input = input_.as<char>();
  b.user = reinterpret_cast<const UserInput*>(b.input);
  b.group = reinterpret_cast<const Group*>(b.input + Aligned(Size(users) * sizeof(UserInput)));
  b.steps = reinterpret_cast<Step*>(output_);
  b.live = reinterpret_cast<int32_t*>(output_ + 3 * Size(b.rows_max) * sizeof(Step));
  if (absl::Status status = Capture(&program); !status.ok()) {
    programs_.erase(key);
    return status;
  }
  return &program;
}

const char* Lane::Launch(const Program& program) const {
  const char* error = LaunchEncode(model_, program.batch, program.layout, stream_);
  for (int step = 0; step < 3 && error == nullptr; ++step) {
    error = LaunchStep(model_, program.batch, program.layout, step, stream_);
    if (error == nullptr) error = LaunchSelect(model_, program.batch, step, stream_);
  }
  return error;
}

absl::Status Lane::Capture(Program* program) {
  const Batch& b = program->batch;
  const auto check = [&](cudaError_t error) { return device_->Check(error, "capturing a generative search"); };
  // Once for nobody: a kernel's first launch may load code or make room for its stack, which no capture allows.
  Program nobody = *program;
  nobody.batch.users = nobody.batch.groups = 1;
  nobody.batch.group = reinterpret_cast<const Group*>(b.input + Aligned(sizeof(UserInput)));
  UserInput* user = pinned_input_.as<UserInput>();
  *user = {};
  user->rows = -1;
  *pinned_input_.as<Group>(Aligned(sizeof(UserInput))) = {-1, 0};
  if (auto s = check(cudaMemcpyAsync(input_.data(), user, 4096, cudaMemcpyHostToDevice, stream_)); !s.ok()) return s;
  if (auto s = device_->CheckText(Launch(nobody), "launching a generative search"); !s.ok()) return s;
  if (auto s = check(cudaStreamSynchronize(stream_)); !s.ok()) return s;

  if (auto s = check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal)); !s.ok()) return s;
  const char* error = Launch(*program);
  const size_t output = 3 * Size(b.rows_max) * sizeof(Step) + 3 * Size(b.users) * 4;
  const cudaError_t copied = cudaMemcpyAsync(pinned_output_.data(), output_, output, cudaMemcpyDeviceToHost, stream_);
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
  if (auto s = device_->CheckText(error, "launching a generative search"); !s.ok()) return s;
  if (auto s = check(copied); !s.ok()) return s;
  if (auto s = check(ended); !s.ok()) return s;
  const cudaError_t made = cudaGraphInstantiate(&program->graph, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  return check(made);
}

void Lane::WriteRows(const CudaUser& user, UserInput* input, char* base, size_t* at) const {
  const bool has_tier = config_.bins() > 0, tier_first = has_tier && config_.tier_position == TierPosition::kFirst;
  const size_t slots = config_.slots(),
               first_slot = slots - user.short_tokens.size() - (has_tier && !tier_first ? 1 : 0);
  auto* rows = reinterpret_cast<EncoderRow*>(base + *at);
  input->rows_at = static_cast<uint32_t>(*at);
  int32_t n = 0;
  if (tier_first) rows[n++] = {0, 1, 0};
  for (size_t i = 0; i < user.short_tokens.size(); ++i) {
    if (user.short_tokens[i] != 0) rows[n++] = {static_cast<uint16_t>(first_slot + i), 0, user.short_tokens[i]};
  }
  if (has_tier && !tier_first) rows[n++] = {static_cast<uint16_t>(slots - 1), 1, 0};
  input->rows = n;
  *at += Aligned(Size(n) * sizeof(EncoderRow));
}

size_t Lane::WriteInputs(std::span<const CudaGlassRequest> requests, const Program& program) {
  const Batch& b = program.batch;
  char* base = pinned_input_.as<char>();
  auto* inputs = reinterpret_cast<UserInput*>(base);
  auto* groups = reinterpret_cast<Group*>(base + Aligned(Size(b.users) * sizeof(UserInput)));
  size_t at = InputHeader(b);
  const auto copy = [&](const auto& values, uint32_t* offset) {
    *offset = static_cast<uint32_t>(at);
    const size_t bytes = values.size() * sizeof(values[0]);
    if (bytes > 0) std::memcpy(base + at, values.data(), bytes);
    at += Aligned(bytes);
  };
  int32_t row = 0;
  int n_groups = 0;
  for (int u = 0; u < b.users; ++u) {
    UserInput& input = inputs[u];
    input = {};
    input.rows = -1;
    if (Size(u) >= requests.size()) continue;
    const CudaGlassRequest& request = requests[Size(u)];
    input.beam = static_cast<int32_t>(request.beam), input.mode = static_cast<int32_t>(request.mode),
    input.first_row = row;
    WriteRows(*request.user, &input, base, &at);
    copy(request.user->tier, &input.tier_at);
    copy(request.user->begin, &input.begin_at);
    copy(request.user->members, &input.members_at);
    if (request.trie != nullptr) input.trie = static_cast<const TrieOnCard*>(request.trie)->arrays;
    const int rows = program.layout.group_rows;
    for (int first = 0; first < input.beam; first += rows) groups[n_groups++] = {u, first};
    row += (input.beam + rows - 1) / rows * rows;
  }
  for (; n_groups < b.groups; ++n_groups) groups[n_groups] = {-1, 0};
  return at;
}

void Lane::ReadReplies(std::span<const CudaGlassRequest> requests, const Program& program,
                       std::span<CudaGlassReply> replies) const {
  const Batch& b = program.batch;
  const auto* steps = pinned_output_.as<const Step>();
  const auto* live = reinterpret_cast<const int32_t*>(steps + 3 * Size(b.rows_max));
  size_t row = 0;
  for (size_t u = 0; u < requests.size(); ++u) {
    std::vector<Beam> before(1);
    for (size_t step = 0; step < kLevels; ++step) {
      std::vector<Beam> beams(Size(live[step * Size(b.users) + u]));
      for (size_t i = 0; i < beams.size(); ++i) {
        const Step& from = steps[step * Size(b.rows_max) + row + i];
        beams[i] = before[from.parent];
        beams[i].tokens[step] = from.token;
        beams[i].score = from.score;
        beams[i].node = from.node;
      }
      if (replies[u].steps != nullptr) (*replies[u].steps)[step] = beams;
      before = std::move(beams);
    }
    replies[u].beams = std::move(before);
    row += Size(GroupsOf(requests[u].beam, program.layout.group_rows) * program.layout.group_rows);
  }
}

// Graph and inputs of a launch; `bytes`: what to copy to the card.
absl::StatusOr<const Lane::Program*> Lane::Prepare(std::span<const CudaGlassRequest> requests, size_t* bytes) {
  const Layout layout = LayoutOf(requests);
  int groups = 0;
  size_t room = 4096;
  for (const CudaGlassRequest& request : requests) {
    groups += GroupsOf(request.beam, layout.group_rows);
    room += request.user->bytes() + config_.slots() * sizeof(EncoderRow) + 2048;
  }
  const int users_rounded = RoundUpToPower(requests.size()), groups_rounded = RoundUpToPower(Size(groups));
  room += Size(users_rounded) * sizeof(UserInput) + Size(groups_rounded) * sizeof(Group);
  if (absl::Status status = device_->Select(); !status.ok()) return status;
  if (absl::Status status = GrowInputs(room); !status.ok()) return status;
  const auto program = ProgramOf(users_rounded, groups_rounded, layout);
  if (program.ok()) *bytes = WriteInputs(requests, **program);
  return program;
}

absl::Status Lane::Run(std::span<const CudaGlassRequest> requests, std::span<CudaGlassReply> replies) {
  size_t bytes = 0;
  const auto program = Prepare(requests, &bytes);
  if (!program.ok()) return program.status();
  const auto check = [&](cudaError_t error) { return device_->Check(error, "a generative search"); };
  if (auto s = check(cudaMemcpyAsync(input_.data(), pinned_input_.data(), bytes, cudaMemcpyHostToDevice, stream_));
      !s.ok()) {
    return s;
  }
  if (auto s = check(cudaGraphLaunch((*program)->graph, stream_)); !s.ok()) return s;
  if (auto s = check(cudaStreamSynchronize(stream_)); !s.ok()) return s;
  ReadReplies(requests, **program, replies);
  return absl::OkStatus();
}

absl::StatusOr<Lane::Times> Lane::Time(std::span<const CudaGlassRequest> requests, int repeats) {
  size_t bytes = 0;
  const auto program = Prepare(requests, &bytes);
  if (!program.ok()) return program.status();
  constexpr size_t kMarks = 10;
  cudaEvent_t marks[kMarks];
  for (cudaEvent_t& mark : marks) static_cast<void>(cudaEventCreate(&mark));
  std::vector<float> took[kMarks - 1];
  const char* error = nullptr;
  for (int i = 0; i < repeats && error == nullptr; ++i) {
    size_t at = 0;
    const auto mark = [&] { static_cast<void>(cudaEventRecord(marks[at++], stream_)); };
    mark();
    static_cast<void>(cudaMemcpyAsync(input_.data(), pinned_input_.data(), bytes, cudaMemcpyHostToDevice, stream_));
    mark();
    static_cast<void>(cudaGraphLaunch((*program)->graph, stream_));
    mark();
    error = LaunchEncode(model_, (*program)->batch, (*program)->layout, stream_);
    mark();
    for (int step = 0; step < 3; ++step) {
      if (error == nullptr) error = LaunchStep(model_, (*program)->batch, (*program)->layout, step, stream_);
      mark();
      if (error == nullptr) error = LaunchSelect(model_, (*program)->batch, step, stream_);
      mark();
    }
    if (auto s = device_->Check(cudaStreamSynchronize(stream_), "timing a generative search"); !s.ok()) return s;
    for (size_t m = 0; m + 1 < kMarks; ++m) {
      float ms = 0;
      static_cast<void>(cudaEventElapsedTime(&ms, marks[m], marks[m + 1]));
      took[m].push_back(ms);
    }
  }
  for (cudaEvent_t mark : marks) static_cast<void>(cudaEventDestroy(mark));
  if (auto s = device_->CheckText(error, "timing a generative search"); !s.ok()) return s;
  const auto median = [&](size_t m) {
    std::nth_element(took[m].begin(), took[m].begin() + static_cast<ptrdiff_t>(took[m].size() / 2), took[m].end());
    return took[m][took[m].size() / 2];
  };
  Times times;
  times.graph = median(1), times.whole = median(0) + times.graph, times.encode = median(2);
  for (size_t step = 0; step < 3; ++step)
    times.step[step] = median(3 + 2 * step), times.select[step] = median(4 + 2 * step);
  return times;
}

}  // namespace backstory::glass::cuda
