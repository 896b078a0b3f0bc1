// The arrays that say where a step's tokens stand, copied to the device once for all layers.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/paged_attention.h"

namespace expertmesh {

class PlacesOnDevice {
 public:
  explicit PlacesOnDevice(DeviceMemory& device) : device_(device) {}
  // [KV groups] -> the same, with on_device. They are valid until the next call, as long as `places` are.
  std::span<TokenPlaces const> take(std::span<TokenPlaces const> places);
  // That the places of a step take there, of so many KV groups and sequences up to `length`.
  static std::size_t most_bytes(std::size_t groups, std::size_t tokens, std::size_t sequences, std::size_t length);

 private:
  static constexpr std::size_t kGrowth = 2;  // times what a step needs that finds too little

  DeviceMemory& device_;
  std::vector<std::uint32_t> packed_;    // all arrays one behind the other
  AlignedBuffer<std::uint32_t> memory_;  // the same there; grows to the largest step's
  std::vector<TokenPlaces> places_;
};

}  // namespace expertmesh
