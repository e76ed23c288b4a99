#include "serving/python/arrow_scores.h"

#include <string>
#include <utility>
#include <vector>

namespace backstory {
namespace {

// What the private_data of a schema points to. Children are released with their parent unless somebody moved them out.
struct SchemaHolder {
  std::string name;
  const char* format;
  std::vector<ArrowSchema> children;
  std::vector<ArrowSchema*> child_pointers;
};

struct ArrayHolder {
  std::shared_ptr<const void> owner;
  const void* buffers[2] = {nullptr, nullptr};
  std::vector<ArrowArray> children;
  std::vector<ArrowArray*> child_pointers;
};

template <typename Holder, typename T>
void Release(T* self) {
  auto* holder = static_cast<Holder*>(self->private_data);
  for (T& child : holder->children) {
    if (child.release != nullptr) child.release(&child);
  }
  self->release = nullptr;
  delete holder;
}

void MakeSchema(std::string name, const char* format, std::vector<ArrowSchema> children, ArrowSchema* schema) {
  auto* holder = new SchemaHolder{std::move(name), format, std::move(children), {}};
  for (ArrowSchema& child : holder->children) holder->child_pointers.push_back(&child);
  *schema = {};
  schema->format = holder->format;
  schema->name = holder->name.c_str();
  schema->flags = ARROW_FLAG_NULLABLE;
  schema->n_children = static_cast<int64_t>(holder->children.size());
  schema->children = holder->child_pointers.data();
  schema->release = Release<SchemaHolder, ArrowSchema>;
  schema->private_data = holder;
}

struct Values {
  size_t rows;
  const void* data;
  const uint8_t* valid;  // null: all
  size_t nulls;
};

void MakeArray(std::shared_ptr<const void> owner, const Values& values, bool is_struct,
               std::vector<ArrowArray> children, ArrowArray* array) {
  auto* holder = new ArrayHolder{std::move(owner), {values.valid, values.data}, std::move(children), {}};
  for (ArrowArray& child : holder->children) holder->child_pointers.push_back(&child);
  *array = {};
  array->length = static_cast<int64_t>(values.rows);
  array->null_count = static_cast<int64_t>(values.nulls);
  array->n_buffers = is_struct ? 1 : 2;
  array->buffers = holder->buffers;
  array->n_children = static_cast<int64_t>(holder->children.size());
  array->children = holder->child_pointers.data();
  array->release = Release<ArrayHolder, ArrowArray>;
  array->private_data = holder;
}

}  // namespace

void ExportScores(std::shared_ptr<const BatchScores> scores, ArrowSchema* schema, ArrowArray* array) {
  struct Owner {
    std::shared_ptr<const BatchScores> scores;
    std::vector<uint8_t> valid;
  };
  auto owner = std::make_shared<Owner>();
  owner->scores = scores;
  const size_t rows = scores->flags.size();
  if (!scores->bad.empty()) {
    owner->valid.assign(rows / 8 + 1, 0xff);
    for (const BadBatchRow& bad : scores->bad) owner->valid[bad.row / 8] &= static_cast<uint8_t>(~(1 << (bad.row % 8)));
  }
  std::vector<ArrowSchema> fields;
  std::vector<ArrowArray> columns;
  const auto add = [&](std::string name, const char* format, const void* data, bool nulls) {
    MakeSchema(std::move(name), format, {}, &fields.emplace_back());
    const bool some = nulls && !scores->bad.empty();
    MakeArray(owner, {rows, data, some ? owner->valid.data() : nullptr, some ? scores->bad.size() : 0}, false, {},
              &columns.emplace_back());
  };
  for (const ScoreColumn& column : scores->scores) {
    add("calibrated." + column.task, "f", column.calibrated.data(), true);
    add("raw_logit." + column.task, "f", column.raw_logit.data(), true);
  }
  add("flags", "C", scores->flags.data(), false);
  add("rows_visible", "I", scores->rows_visible.data(), false);
  MakeSchema("", "+s", std::move(fields), schema);
  MakeArray(owner, {rows, nullptr, nullptr, 0}, true, std::move(columns), array);
}

}  // namespace backstory
