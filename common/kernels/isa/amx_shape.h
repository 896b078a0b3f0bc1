// The size of AMX's tile registers.
#pragma once
#include <cstddef>

namespace expertmesh {
namespace {

constexpr std::size_t kTileRowBytes = 64;
constexpr std::size_t kTileHeight = 16;  // rows, at most

}  // namespace
}  // namespace expertmesh
