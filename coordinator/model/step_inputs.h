// What the layers read of a step's batch, copied to the device in one piece for all of them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/paged_attention.h"

namespace expertmesh {

class StepInputs {
 public:
  // most_numbers: that there is room for from the start; of more, from the first step that needs it.
  explicit StepInputs(DeviceMemory& device, std::size_t most_numbers = 0);
  // Puts ids [T] and places [KV groups] there. most_positions: of TokenPlaces::OnDevice. Their addresses depend on the
  // numbers of tokens and sequences, and on where().
  void put(std::span<TokenId const> ids, std::span<TokenPlaces const> places, std::size_t most_positions);
  // Of the last put(), until the next, as long as what it was given is there.
  [[nodiscard]] std::span<TokenId const> ids() const { return ids_; }            // [T] in the device's memory
  [[nodiscard]] std::span<TokenPlaces const> places() const { return places_; }  // [KV groups], with on_device
  [[nodiscard]] std::uint32_t const* where() const { return memory_.data(); }    // moves when a step needs more room
  // That the inputs of a step take there, of so many KV groups and sequences up to `length`.
  static std::size_t most_bytes(std::size_t groups, std::size_t tokens, std::size_t sequences, std::size_t length);
  // Of an encoder's batch of up to so many tokens.
  static std::size_t most_numbers(std::size_t tokens);

 private:
  static constexpr std::size_t kGrowth = 2;  // times what a step needs that finds too little

  DeviceMemory& device_;
  std::vector<std::uint32_t> packed_;    // all arrays one behind the other
  AlignedBuffer<std::uint32_t> memory_;  // the same there; grows to the largest step's
  std::span<TokenId const> ids_;
  std::vector<TokenPlaces> places_;
};

}  // namespace expertmesh
