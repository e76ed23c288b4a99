// One line about the machine, printed beside every measurement.
#ifndef BACKSTORY_SERVING_CLI_MACHINE_H_
#define BACKSTORY_SERVING_CLI_MACHINE_H_

#include <string>

namespace backstory {

// "AMD EPYC 9R14, 2 cores, release 0.1.0"
std::string MachineLine();

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_MACHINE_H_
