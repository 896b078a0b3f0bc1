// Under sanitizers what computes takes many times as long: fewer cases of a kind, and smaller ones.
#pragma once
#include <cstddef>

namespace expertmesh::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kFewCases = true;
#else
constexpr bool kFewCases = false;
#endif
// Bytes of a text that only linear time gets through.
constexpr std::size_t kLongText = std::size_t{1} << (kFewCases ? 17 : 20);

}  // namespace expertmesh::test
