// backstory_engine._native: the batch scorer as a Python module. Thin: Arrow in and out (arrow_rows.h, arrow_scores.h),
// statuses as exceptions; what is comfortable is Python's (backstory_engine/scorer.py).
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "pybind11/pybind11.h"
#include "pybind11/stl.h"
#include "serving/embedded/embedded_engine.h"
#include "serving/engine/batch/batch_scorer.h"
#include "serving/python/arrow_rows.h"
#include "serving/python/arrow_scores.h"

namespace py = pybind11;

namespace backstory {
namespace {

// A status on its way to Python; leaves C++ as _native.Error(code, message).
struct StatusError : std::runtime_error {
  explicit StatusError(absl::Status s) : std::runtime_error(std::string(s.message())), status(std::move(s)) {}
  absl::Status status;
};

template <typename T>
T ValueOf(absl::StatusOr<T> value) {
  if (!value.ok()) throw StatusError(value.status());
  return *std::move(value);
}

template <typename T>
T* FromCapsule(const py::handle& object, const char* name) {
  auto* pointer = static_cast<T*>(PyCapsule_GetPointer(object.ptr(), name));
  if (pointer == nullptr) throw py::error_already_set();
  return pointer;
}

// A capsule as the Arrow PyCapsule interface wants it: whoever takes the content out empties the struct.
template <typename T>
py::object ToCapsule(std::unique_ptr<T> content, const char* name) {
  PyObject* capsule = PyCapsule_New(content.get(), name, [](PyObject* self) {
    auto* held = static_cast<T*>(PyCapsule_GetPointer(self, PyCapsule_GetName(self)));
    if (held->release != nullptr) held->release(held);
    delete held;
  });
  if (capsule == nullptr) throw py::error_already_set();
  content.release();
  return py::reinterpret_steal<py::object>(capsule);
}

// What a call of Score gives back; scores leave through __arrow_c_array__.
struct Result {
  std::shared_ptr<const BatchScores> scores;

  py::tuple ArrowCArray(const py::object&) const {
    auto schema = std::make_unique<ArrowSchema>();
    auto array = std::make_unique<ArrowArray>();
    ExportScores(scores, schema.get(), array.get());
    py::object schema_capsule = ToCapsule(std::move(schema), "arrow_schema");
    return py::make_tuple(std::move(schema_capsule), ToCapsule(std::move(array), "arrow_array"));
  }
  py::list Bad() const {
    py::list rows;
    for (const BadBatchRow& bad : scores->bad) rows.append(py::make_tuple(bad.row, bad.column, bad.reason));
    return rows;
  }
};

// Rows that the columns themselves refuse: takes their scores back and says why.
void AddBad(const std::vector<BadBatchRow>& refused, BatchScores* scores) {
  if (refused.empty()) return;
  std::map<size_t, BadBatchRow> bad;
  for (const BadBatchRow& row : refused) bad.try_emplace(row.row, row);
  for (const auto& [row, reason] : bad) {
    for (ScoreColumn& column : scores->scores) {
      column.calibrated[row] = column.raw_logit[row] = std::numeric_limits<float>::quiet_NaN();
    }
    scores->flags[row] = kRowBad;
    scores->rows_visible[row] = 0;
  }
  for (BadBatchRow& row : scores->bad) bad.try_emplace(row.row, std::move(row));
  scores->bad.clear();
  for (auto& [row, reason] : bad) scores->bad.push_back(std::move(reason));
}

// Engine and scorer of one version. Calls may come from several threads.
class Scorer {
 public:
  Scorer(const EmbeddedOptions& options, BatchOptions batch) {
    py::gil_scoped_release release;
    engine_ = ValueOf(EmbeddedEngine::Open(options));
    batch.model = engine_->model();
    scorer_ = ValueOf(BatchScorer::Create(engine_->engine(), std::move(batch)));
    const HistoryStore::Stats stats = ValueOf(engine_->engine()->store().GetStats());
    store_users_ = stats.users;
    store_events_ = stats.events;
    store_items_ = engine_->engine()->catalog().Size(scorer_->options().ns);
  }

  // `progress` (or None) hears from time to time how many rows are done.
  Result Score(const py::object& batch, const py::object& heard) const {
    const py::tuple capsules = batch.attr("__arrow_c_array__")();
    auto* schema = FromCapsule<ArrowSchema>(capsules[0], "arrow_schema");
    auto* array = FromCapsule<ArrowArray>(capsules[1], "arrow_array");
    std::stop_source stop;
    const auto progress = [&stop, &heard](size_t rows_done) {
      py::gil_scoped_acquire acquire;
      if (PyErr_Occurred() != nullptr) return;
      PyObject* told =
          heard.is_none() ? nullptr : PyObject_CallFunction(heard.ptr(), "n", static_cast<Py_ssize_t>(rows_done));
      Py_XDECREF(told);
      // What the listener raised, or Ctrl-C while the engine works, ends the call.
      if ((told == nullptr && PyErr_Occurred() != nullptr) || PyErr_CheckSignals() != 0) stop.request_stop();
    };
    auto scores = std::make_shared<BatchScores>();
    absl::Status status;
    {
      py::gil_scoped_release release;
      auto rows = ArrowRows::Make(schema, array);
      if (!rows.ok()) {
        status = rows.status();
      } else if (absl::StatusOr<BatchScores> scored = ScoreRows((*rows)->rows(), stop.get_token(), progress);
                 scored.ok()) {
        *scores = *std::move(scored);
        AddBad((*rows)->bad(), scores.get());
      } else {
        status = scored.status();
      }
    }
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (!status.ok()) throw StatusError(std::move(status));
    return Result{std::move(scores)};
  }

  const std::string& model() const { return scorer_->model().name; }
  const std::string& version() const { return scorer_->model().version; }
  std::string config_version() const { return scorer_->model().calibration.config_version(); }
  const std::string& content_hash() const { return engine_->content_hash(); }
  const std::vector<std::string>& tasks() const { return scorer_->model().model->config().tasks; }
  uint64_t store_users() const { return store_users_; }
  uint64_t store_events() const { return store_events_; }
  uint64_t store_items() const { return store_items_; }
  std::map<std::string, std::string> Parameters() const {
    std::map<std::string, std::string> values;
    for (const EffectiveParameter& p : engine_->engine()->parameters().Report()) values[p.name] = p.value;
    return values;
  }
  std::map<std::string, uint64_t> Stats() const {
    const EngineStats stats = engine_->engine()->Stats();
    return {{"cached_users", stats.cached_users}, {"cached_bytes", stats.cached_bytes}, {"hits", stats.hits},
            {"extends", stats.extends},           {"truncates", stats.truncates},       {"rebuilds", stats.rebuilds},
            {"uncached", stats.uncached},         {"evictions", stats.evictions}};
  }

 private:
  absl::StatusOr<BatchScores> ScoreRows(const BatchRows& rows, std::stop_token stop,
                                        const BatchScorer::Progress& progress) const {
    if (rows.rows > 0) return scorer_->Score(rows, std::move(stop), progress);
    BatchScores none;  // no rows leave no columns to look at
    for (const std::string& task : tasks()) none.scores.push_back({task, {}, {}});
    return none;
  }

  std::unique_ptr<EmbeddedEngine> engine_;
  std::unique_ptr<BatchScorer> scorer_;
  uint64_t store_users_ = 0, store_events_ = 0, store_items_ = 0;
};

std::unique_ptr<Scorer> MakeScorer(const std::string& store, const std::string& models, const std::string& model,
                                   const std::string& version, const std::string& label, int threads,
                                   size_t cache_bytes, const std::string& ns, const std::string& scene,
                                   const std::map<std::string, std::string>& parameters) {
  EmbeddedOptions options;
  options.store = store;
  options.models = models;
  options.model = {model, version, label};
  options.threads = threads;
  options.cache_bytes = cache_bytes;
  options.parameters = parameters;
  BatchOptions batch;
  batch.ns = ns;
  batch.scene = scene;
  return std::make_unique<Scorer>(options, std::move(batch));
}

// Slots of the users of a batch that has this one column.
py::bytes Slots(const py::object& batch) {
  const py::tuple capsules = batch.attr("__arrow_c_array__")();
  const auto rows = ValueOf(ArrowRows::Make(FromCapsule<ArrowSchema>(capsules[0], "arrow_schema"),
                                            FromCapsule<ArrowArray>(capsules[1], "arrow_array")));
  std::string bytes(rows->rows().users.size() * sizeof(uint16_t), '\0');
  for (size_t row = 0; row < rows->rows().users.size(); ++row) {
    const auto slot = static_cast<uint16_t>(SlotOf(rows->rows().users[row]));
    std::memcpy(bytes.data() + row * sizeof slot, &slot, sizeof slot);
  }
  return py::bytes(bytes);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.attr("VERSION") = BACKSTORY_VERSION;
  static py::handle error = py::exception<StatusError>(module, "Error").release();
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      std::rethrow_exception(pointer);
    } catch (const StatusError& e) {
      const py::tuple arguments = py::make_tuple(absl::StatusCodeToString(e.status.code()), std::string(e.what()));
      PyErr_SetObject(error.ptr(), arguments.ptr());
    }
  });
  module.def("slots", &Slots, py::arg("batch"), "Slots of a batch of one column, user: uint16 each, as bytes.");
  py::class_<Result>(module, "Result")
      .def("__arrow_c_array__", &Result::ArrowCArray, py::arg("requested_schema") = py::none())
      .def_property_readonly("bad", &Result::Bad)
      .def_property_readonly("requests", [](const Result& r) { return r.scores->requests; });
  py::class_<Scorer>(module, "Scorer")
      .def(py::init(&MakeScorer), py::kw_only(), py::arg("store"), py::arg("models"), py::arg("model"),
           py::arg("version"), py::arg("label"), py::arg("threads"), py::arg("cache_bytes"), py::arg("namespace"),
           py::arg("scene"), py::arg("parameters"))
      .def("score", &Scorer::Score, py::arg("batch"), py::arg("progress") = py::none())
      .def_property_readonly("model", &Scorer::model)
      .def_property_readonly("version", &Scorer::version)
      .def_property_readonly("config_version", &Scorer::config_version)
      .def_property_readonly("content_hash", &Scorer::content_hash)
      .def_property_readonly("tasks", &Scorer::tasks)
      .def_property_readonly("store_users", &Scorer::store_users)
      .def_property_readonly("store_events", &Scorer::store_events)
      .def_property_readonly("store_items", &Scorer::store_items)
      .def_property_readonly("parameters", &Scorer::Parameters)
      .def("stats", &Scorer::Stats);
}

}  // namespace backstory
