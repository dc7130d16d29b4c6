// An op's name as a template argument: Entry<"matmul", ...>.
#pragma once
#include <algorithm>
#include <cstddef>
#include <string>

namespace tilewright {

template <size_t kSize>
struct OpName {
  char text[kSize];
  consteval OpName(const char (&name)[kSize]) { std::copy_n(name, kSize, text); }  // implicit, so that "x" will do
  std::string qualified() const { return std::string("tilewright::") + text; }
};

}  // namespace tilewright
