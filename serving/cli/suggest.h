// Which known word was probably meant by an unknown one?
#ifndef BACKSTORY_SERVING_CLI_SUGGEST_H_
#define BACKSTORY_SERVING_CLI_SUGGEST_H_

#include <string>
#include <vector>

namespace backstory {

// The word of smallest edit distance if that is at most 2 and less than the word's length; else "".
std::string ClosestWord(const std::string& typed, const std::vector<std::string>& words);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SUGGEST_H_
