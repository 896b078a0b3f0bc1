// A warp's product on tensor cores, with the fragments where the PTX ISA has them (mma.m16n8k16, bf16).
#include <cstring>

#include "cuda_on_host.h"

namespace expertmesh::cuda_on_host {
namespace {

constexpr unsigned kRows = 16;
constexpr unsigned kColumns = 8;
constexpr unsigned kDepth = 16;

struct OfLane {
  float d[4];
  std::uint32_t a[4];
  std::uint32_t b[2];
};
static_assert(sizeof(OfLane) <= kMostOfLane);

// Of the two bf16 of a word, the i-th.
float bf16_at(std::uint32_t word, unsigned i) {
  std::uint32_t const bits = i == 0 ? word << 16 : word & 0xffff0000U;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

void multiply(void* of_lanes) {
  auto* const lanes = static_cast<OfLane*>(of_lanes);
  float a[kDepth][kRows];
  float b[kDepth][kColumns];
  float d[kRows][kColumns];
  for (unsigned lane = 0; lane < 32; ++lane) {
    unsigned const group = lane / 4;
    unsigned const pair = lane % 4 * 2;
    for (unsigned i = 0; i < 2; ++i) {
      for (unsigned word = 0; word < 4; ++word)
        a[pair + i + word / 2 * 8][group + word % 2 * 8] = bf16_at(lanes[lane].a[word], i);
      for (unsigned word = 0; word < 2; ++word) b[pair + i + word * 8][group] = bf16_at(lanes[lane].b[word], i);
      for (unsigned half = 0; half < 2; ++half) d[group + half * 8][pair + i] = lanes[lane].d[half * 2 + i];
    }
  }
  for (unsigned k = 0; k < kDepth; ++k)
    for (unsigned row = 0; row < kRows; ++row)
      for (unsigned column = 0; column < kColumns; ++column) d[row][column] += a[k][row] * b[k][column];
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned half = 0; half < 2; ++half)
      for (unsigned i = 0; i < 2; ++i) lanes[lane].d[half * 2 + i] = d[lane / 4 + half * 8][lane % 4 * 2 + i];
}

}  // namespace

void mma_in_warp(float (&d)[4], std::array<std::uint32_t, 4> const& a, std::array<std::uint32_t, 2> const& b,
                 Place place) {
  OfLane mine{.d = {d[0], d[1], d[2], d[3]}, .a = {a[0], a[1], a[2], a[3]}, .b = {b[0], b[1]}};
  work_in_warp(&mine, sizeof mine, multiply, place);
  std::memcpy(d, mine.d, sizeof mine.d);
}

}  // namespace expertmesh::cuda_on_host
