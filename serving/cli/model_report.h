// What `backstory model inspect` says about a version, for people and for programs.
#ifndef BACKSTORY_SERVING_CLI_MODEL_REPORT_H_
#define BACKSTORY_SERVING_CLI_MODEL_REPORT_H_

#include <string>

#include "models/grab/version.h"
#include "nlohmann/json_fwd.hpp"

namespace backstory {

// `tensors`: list every tensor, else only their number and size. `state_id` comes from the built model.
std::string VersionText(const grab::VersionFiles& files, const std::string& state_id, bool tensors);
nlohmann::json VersionJson(const grab::VersionFiles& files, const std::string& state_id);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_MODEL_REPORT_H_
