// Which known word was probably meant by an unknown one? For messages that end with "did you mean ...?".
#ifndef BACKSTORY_SERVING_ENGINE_CLOSEST_WORD_H_
#define BACKSTORY_SERVING_ENGINE_CLOSEST_WORD_H_

#include <span>
#include <string>
#include <string_view>

namespace backstory {

// The word of smallest edit distance (the first of several), if that is at most max(2, a third of what was typed) and
// less than the word's length; else "". Also "" if more than 64 bytes were typed: nobody meant that.
std::string_view ClosestWord(std::string_view typed, std::span<const std::string> words);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_CLOSEST_WORD_H_
