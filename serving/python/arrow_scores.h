// Scores as Arrow (the C data interface), without copying them. Knows no Python.
#ifndef BACKSTORY_SERVING_PYTHON_ARROW_SCORES_H_
#define BACKSTORY_SERVING_PYTHON_ARROW_SCORES_H_

#include <memory>

#include "arrow/c/abi.h"
#include "serving/engine/batch/batch_rows.h"

namespace backstory {

// A struct of calibrated.<task> and raw_logit.<task> (float32, null where a row is bad) for every task, then flags
// (uint8) and rows_visible (uint32); each [rows]. Whoever receives the two releases them; until then they keep `scores`
// alive, which must not change any more.
void ExportScores(std::shared_ptr<const BatchScores> scores, ArrowSchema* schema, ArrowArray* array);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_PYTHON_ARROW_SCORES_H_
