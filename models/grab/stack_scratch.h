// Working memory of one task of the stack: one piece from the stack's pool, laid out for what the task does. Private to
// stack.cc.
#ifndef BACKSTORY_MODELS_GRAB_STACK_SCRATCH_H_
#define BACKSTORY_MODELS_GRAB_STACK_SCRATCH_H_

#include "kernels/aligned.h"
#include "kernels/attend.h"
#include "models/grab/stack.h"

namespace backstory::grab {

struct Stack::Scratch {
  enum Use { kKeys, kQueries, kCandidates };

  // `folded_pages` whose keys candidates see with their bias folded in.
  Scratch(const Stack& stack, size_t rows, Use use, size_t folded_pages = 0)
      : arena(Floats(stack, rows, use, folded_pages), stack.arenas_.get()) {
    z = arena.Take(rows * stack.d_);
    latent = arena.Take(rows * stack.inner_);
    if (use != kQueries) {
      k = arena.Take(rows * stack.wide_);
      v = arena.Take(rows * stack.wide_);
    }
    if (use == kKeys) return;
    q = arena.Take(rows * stack.wide_);
    o = arena.Take(rows * stack.wide_);
    lse = arena.Take(rows * stack.heads_);
    bias = arena.Take(rows * stack.heads_ * TableWidth(stack, use) + kPanel);
    ffn = arena.Take(rows * stack.ffn_);
    f = arena.Take(rows * stack.d_);
    workspace = arena.Take(AttendWorkspaceFloats(stack.page_shape()));
    if (use == kQueries) return;
    x = arena.Take(stack.channels_ * rows * stack.d_);
    concat = arena.Take(rows * stack.channels_ * stack.d_);
    beta = arena.Take(rows * stack.channels_);
    head = arena.Take(rows * static_cast<size_t>(stack.config_.head_hidden));
    folded = arena.Take(FoldedFloats(stack, folded_pages));
  }

  // Attention of `rows` queries at q with the bias table at `bias`; who is visible is the caller's to say.
  AttendArgs Attend(const Stack& stack, size_t rows, std::span<const PageView> pages) const {
    return {.queries = rows,
            .heads = stack.heads_,
            .shape = stack.page_shape(),
            .scale = stack.scale_,
            .q = q,
            .bias = {.rows = bias,
                     .stride = stack.table_width_,
                     .n_pos = static_cast<size_t>(stack.config_.n_pos),
                     .n_time = static_cast<size_t>(stack.config_.n_time)},
            .pages = pages,
            .o = o,
            .lse = lse,
            .workspace = workspace};
  }

  static size_t TableWidth(const Stack& s, Use use) { return use == kCandidates ? s.far_width_ : s.table_width_; }
  static size_t FoldedFloats(const Stack& s, size_t pages) {
    return pages * s.page_shape().k_size() * s.page_shape().element_bytes() / sizeof(float);
  }
  static size_t Floats(const Stack& s, size_t rows, Use use, size_t folded_pages) {
    constexpr size_t kPads = 16 * 16;  // each piece is padded to 16 floats
    size_t floats = kPads + rows * (s.d_ + s.inner_);
    if (use != kQueries) floats += rows * 2 * s.wide_;
    if (use == kKeys) return floats;
    floats += rows * (2 * s.wide_ + s.heads_ * (1 + TableWidth(s, use)) + s.ffn_ + s.d_) + kPanel +
              AttendWorkspaceFloats(s.page_shape());
    if (use == kQueries) return floats;
    return floats + rows * (2 * s.channels_ * s.d_ + s.channels_ + static_cast<size_t>(s.config_.head_hidden)) +
           FoldedFloats(s, folded_pages);
  }

  Arena arena;
  float* z = nullptr;          // [rows][d]
  float* latent = nullptr;     // [rows][latent or d]
  float* k = nullptr;          // [rows][heads * d_head]
  float* v = nullptr;          // [rows][heads * d_head]
  float* q = nullptr;          // [rows][heads * d_head]
  float* o = nullptr;          // [rows][heads * d_head]
  float* lse = nullptr;        // [rows][heads]
  float* bias = nullptr;       // [rows][heads][n_pos + n_time] + 16; n_pos = kFarPositions for candidates
  float* ffn = nullptr;        // [rows][ffn]
  float* f = nullptr;          // [rows][d]
  float* workspace = nullptr;  // of attend
  float* x = nullptr;          // [channels][rows][d]
  float* concat = nullptr;     // [rows][channels * d]
  float* beta = nullptr;       // [rows][channels]
  float* head = nullptr;       // [rows][head_hidden]
  float* folded = nullptr;     // [folded pages], keys in the dtype of the pages
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_STACK_SCRATCH_H_
