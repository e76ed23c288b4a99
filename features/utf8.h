// Whether bytes are well-formed UTF-8 (no overlong forms, no surrogates, up to U+10FFFF).
#ifndef BACKSTORY_FEATURES_UTF8_H_
#define BACKSTORY_FEATURES_UTF8_H_

#include <string_view>

namespace backstory {

bool IsUtf8(std::string_view bytes);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_UTF8_H_
