#include "common/kernels/panel_packing.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "common/base/bf16.h"
#include "common/base/check.h"
#include "common/kernels/bf16_bits.h"
#include "common/kernels/fp8_panels.h"
#include "common/kernels/int4_panels.h"
#include "common/kernels/int8_panels.h"
#include "common/kernels/mxfp4_panels.h"

namespace expertmesh {
namespace {

// Compiled for each of pack_plain(), pack_avx2() and pack_avx512(): hence everything that runs in them is inlined.
#define EM_INLINE [[gnu::always_inline]] inline

constexpr std::size_t kColumns = kPanelColumns;
constexpr std::size_t kRowWords = 16;   // of 32 bits, that are read of a row at once
using Words = std::uint32_t[kColumns];  // a 32-bit word of each column
using Row = float[kColumns];            // a number of each column

// The rows of a panel. Columns that are not given read zeros, and are not written.
struct Source {
  std::array<std::byte const*, kColumns> row;
  std::array<std::size_t, kColumns> live;  // 1; 0: zeros
  std::size_t first;
  std::size_t end;

  EM_INLINE std::byte const* at(std::size_t column, std::size_t byte) const {
    return row[column] + byte * live[column];
  }
};

Source source_of(PanelRows const& rows, std::size_t row_bytes) {
  alignas(64) static constexpr std::array<std::byte, kRowWords * sizeof(std::uint32_t)> kZeros{};
  Source source{.row = {}, .live = {}, .first = rows.first, .end = rows.first + rows.count};
  for (std::size_t n = 0; n < kColumns; ++n) {
    bool const given = n >= source.first && n < source.end;
    source.row[n] = given ? rows.data + (n - source.first) * row_bytes : kZeros.data();
    source.live[n] = given ? 1 : 0;
  }
  return source;
}

// out[i][n] = 32-bit word i of row n from `byte` on.
EM_INLINE void transpose(Source const& source, std::size_t byte, Words (&out)[kRowWords]) {
  using Four = std::uint32_t __attribute__((vector_size(16)));
  for (std::size_t n = 0; n < kColumns; n += 4)
    for (std::size_t i = 0; i < kRowWords; i += 4) {
      Four r[4];
      for (std::size_t j = 0; j < 4; ++j) std::memcpy(&r[j], source.at(n + j, byte) + 4 * i, sizeof(Four));
      Four const ab = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
      Four const cd = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
      Four const ef = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
      Four const gh = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
      Four const columns[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                               __builtin_shufflevector(ef, gh, 0, 1, 4, 5),
                               __builtin_shufflevector(ef, gh, 2, 3, 6, 7)};
      for (std::size_t j = 0; j < 4; ++j) std::memcpy(&out[i + j][n], &columns[j], sizeof(Four));
    }
}

EM_INLINE void store(Source const& source, Words const& words, std::byte* out) {
  if (source.first == 0 && source.end == kColumns)
    std::memcpy(out, words, sizeof words);
  else
    std::memcpy(out + source.first * sizeof(std::uint32_t), words + source.first,
                (source.end - source.first) * sizeof(std::uint32_t));
}

template <class From>
EM_INLINE float number(Source const& source, std::size_t column, std::size_t i) {
  From x{};
  std::memcpy(&x, source.at(column, i * sizeof(From)), source.live[column] * sizeof(From));
  if constexpr (std::is_same_v<From, float>)
    return x;
  else
    return to_float(x);
}

// x[i][n] = number begin + i of row n, i < count.
template <class From>
EM_INLINE void load(Source const& source, std::size_t begin, std::size_t count, Row* x) {
  constexpr std::size_t kAtOnce = kRowWords * sizeof(std::uint32_t) / sizeof(From);
  std::size_t i = 0;
  for (; !std::is_same_v<From, fp16> && i + kAtOnce <= count; i += kAtOnce) {
    Words words[kRowWords];
    transpose(source, (begin + i) * sizeof(From), words);
    for (std::size_t word = 0; word < kRowWords; ++word)
      for (std::size_t n = 0; n < kColumns; ++n)
        if constexpr (std::is_same_v<From, float>) {
          x[i + word][n] = __builtin_bit_cast(float, words[word][n]);
        } else {
          x[i + 2 * word][n] = __builtin_bit_cast(float, words[word][n] << 16);
          x[i + 2 * word + 1][n] = __builtin_bit_cast(float, words[word][n] & 0xffff0000U);
        }
  }
  for (; i < count; ++i)
    for (std::size_t n = 0; n < kColumns; ++n) x[i][n] = number<From>(source, n, begin + i);
}

constexpr std::size_t kLoaded = 128;  // numbers of a row at a time: in the first-level cache

template <class From>
EM_INLINE void pack_f32(Source const& source, std::size_t k, std::byte* panel) {
  for (std::size_t begin = 0; begin < k; begin += kLoaded) {
    Row x[kLoaded];
    std::size_t const count = std::min(kLoaded, k - begin);
    load<From>(source, begin, count, x);
    for (std::size_t i = 0; i < count; ++i) {
      Words words;
      std::memcpy(words, x[i], sizeof words);
      store(source, words, panel + (begin + i) * sizeof words);
    }
  }
}

template <class From>
EM_INLINE void pack_bf16(Source const& source, std::size_t k, std::byte* panel) {
  std::size_t begin = 0;
  if constexpr (std::is_same_v<From, bf16>)  // pairs lie in a row as they do in the panel
    for (; begin + 2 * kRowWords <= k; begin += 2 * kRowWords) {
      Words words[kRowWords];
      transpose(source, begin * sizeof(From), words);
      for (std::size_t i = 0; i < kRowWords; ++i) store(source, words[i], panel + (begin / 2 + i) * sizeof(Words));
    }
  for (; begin < k; begin += kLoaded) {
    Row x[kLoaded];
    std::size_t const count = std::min(kLoaded, k - begin);
    load<From>(source, begin, count, x);
    if (count % 2 != 0) std::memset(x[count], 0, sizeof(Row));
    for (std::size_t i = 0; i < count; i += 2) {
      Words words;
      for (std::size_t n = 0; n < kColumns; ++n)
        if constexpr (std::is_same_v<From, bf16>)
          words[n] = __builtin_bit_cast(std::uint32_t, x[i][n]) >> 16 | __builtin_bit_cast(std::uint32_t, x[i + 1][n]);
        else
          words[n] = bf16_bits(x[i][n]) | std::uint32_t{bf16_bits(x[i + 1][n])} << 16;
      store(source, words, panel + (begin + i) / 2 * sizeof words);
    }
  }
}

// C: as many columns as are worked on at once.
template <class From, class C>
EM_INLINE void pack_int8(Source const& source, std::size_t k, std::byte* panel) {
  using Floats = typename C::Floats;
  using Whole = typename C::Whole;
  for (std::size_t begin = 0; begin < k; begin += kInt8Group, panel += kInt8BlockBytes) {
    alignas(64) Row x[kInt8Group];
    std::size_t const count = std::min(kInt8Group, k - begin);
    std::size_t const steps = (count + kInt8StepK - 1) / kInt8StepK;
    load<From>(source, begin, count, x);
    std::memset(x + count, 0, (steps * kInt8StepK - count) * sizeof(Row));
    alignas(64) Words scales;
    alignas(64) Words words[kInt8Group / kInt8StepK];
    for (std::size_t first = 0; first < kColumns; first += C::kCount) {
      auto const numbers = [&](std::size_t i) __attribute__((always_inline))->Floats const& {
        return *reinterpret_cast<Floats const*>(x[i] + first);
      };
      Whole largest{};  // bits of magnitudes
      for (std::size_t i = 0; i < count; ++i) {
        Whole const bits = __builtin_bit_cast(Whole, numbers(i)) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
      }
      std::int32_t bits[C::kCount];
      float inverses[C::kCount];
      std::memcpy(bits, &largest, sizeof bits);
      for (std::size_t n = 0; n < C::kCount; ++n) {
        Int8Scale const s = int8_scale_of(bits[n]);
        scales[first + n] = __builtin_bit_cast(std::uint32_t, s.scale);
        inverses[n] = s.inverse;
      }
      Floats inverse;
      std::memcpy(&inverse, inverses, sizeof inverse);
      Whole const counts = inverse != Floats{};
      for (std::size_t step = 0; step < steps; ++step) {
        Whole word{};
        for (std::size_t j = 0; j < kInt8StepK; ++j) {
          Floats const shift = Floats{} + kInt8Shift;
          Whole const whole = __builtin_bit_cast(Whole, numbers(step * kInt8StepK + j) * inverse + shift) -
                              __builtin_bit_cast(Whole, shift);
          word |= ((whole & counts) + kInt8Bias) << static_cast<int>(8 * j);
        }
        std::memcpy(words[step] + first, &word, sizeof word);
      }
    }
    store(source, scales, panel);
    for (std::size_t step = 0; step < steps; ++step)
      store(source, words[step], panel + kInt8ScaleBytes + step * kInt8StepBytes);
  }
}

template <class From, class C>
EM_INLINE void pack_int4(Source const& source, std::size_t k, std::byte* panel) {
  constexpr std::size_t kSteps = kInt4Group / kInt4StepK;
  for (std::size_t begin = 0; begin < k; begin += kInt4Group, panel += kInt4BlockBytes) {
    Row x[kInt4Group];
    std::size_t const count = std::min(kInt4Group, k - begin);
    load<From>(source, begin, count, x);
    std::memset(x + count, 0, (kInt4Group - count) * sizeof(Row));
    std::uint16_t scales[kColumns];
    Words words[kSteps];
    for (std::size_t first = 0; first < kColumns; first += C::kCount) {
      typename C::Floats numbers[kInt4Group];
      typename C::Whole whole[kInt4Group];
      std::uint16_t some_scales[C::kCount];
      for (std::size_t i = 0; i < kInt4Group; ++i) std::memcpy(&numbers[i], x[i] + first, sizeof numbers[i]);
      quantise_int4<C>(numbers, some_scales, whole);
      std::memcpy(scales + first, some_scales, sizeof some_scales);
      for (std::size_t step = 0; step < kSteps; ++step) {
        typename C::Whole word{};
        for (std::size_t j = 0; j < kInt4StepK; ++j)
          word |= (whole[step * kInt4StepK + j] + kInt4Bias) << static_cast<int>(8 * (j % 4) + j / 4 * 4);
        std::memcpy(words[step] + first, &word, sizeof word);
      }
    }
    std::memcpy(panel + source.first * sizeof(std::uint16_t), scales + source.first,
                (source.end - source.first) * sizeof(std::uint16_t));
    for (std::size_t step = 0; step < kSteps; ++step)
      store(source, words[step], panel + kInt4ScaleBytes + step * kInt4StepBytes);
  }
}

template <class From, class C>
EM_INLINE void pack_from(WeightFormat const& format, Source const& source, std::size_t k, std::byte* panel) {
  if (format.storage == DType::f32) return pack_f32<From>(source, k, panel);
  if (format.storage == DType::i8) return pack_int8<From, C>(source, k, panel);
  if (format.storage == DType::i4) return pack_int4<From, C>(source, k, panel);
  pack_bf16<From>(source, k, panel);
}

template <class C>
EM_INLINE void pack(WeightFormat const& format, DType type, Source const& source, std::size_t k, std::byte* panel) {
  if (type == DType::f32) return pack_from<float, C>(format, source, k, panel);
  if (type == DType::bf16) return pack_from<bf16, C>(format, source, k, panel);
  pack_from<fp16, C>(format, source, k, panel);
}

#undef EM_INLINE

// The same bytes wherever they are made: nothing here is contracted or reordered.
void pack_plain(WeightFormat const& format, PanelRows const& rows, std::size_t k, std::byte* panel) {
  pack<FourColumns>(format, rows.type, source_of(rows, k * size_of(rows.type)), k, panel);
}
#if defined(__x86_64__)
[[gnu::target("avx2")]] void pack_avx2(WeightFormat const& format, PanelRows const& rows, std::size_t k,
                                       std::byte* panel) {
  pack<EightColumns>(format, rows.type, source_of(rows, k * size_of(rows.type)), k, panel);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl")]] void pack_avx512(WeightFormat const& format,
                                                                       PanelRows const& rows, std::size_t k,
                                                                       std::byte* panel) {
  pack<SixteenColumns>(format, rows.type, source_of(rows, k * size_of(rows.type)), k, panel);
}
#endif

}  // namespace

std::vector<PackPanel> runnable_packers() {
  std::vector<PackPanel> packers{pack_plain};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) packers.push_back(pack_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    packers.push_back(pack_avx512);
#endif
  return packers;
}

std::size_t panel_bytes(WeightFormat const& format, std::size_t k) {
  if (format.storage == DType::i8) return int8_panel_bytes(k);
  if (format.storage == DType::i4) return int4_panel_bytes(k);
  if (format.storage == DType::f4_e2m1) return mxfp4_panel_bytes(k);
  if (format.storage == DType::f8_e4m3) return fp8_panel_bytes(k, format.group_size);
  std::size_t const padded_k = format.storage == DType::bf16 ? (k + 1) / 2 * 2 : k;
  return kPanelColumns * padded_k * size_of(format.storage);
}

void pack_panel(WeightFormat const& format, PanelRows const& rows, std::size_t k, std::byte* panel) {
  EM_CHECK(rows.type == DType::f32 || rows.type == DType::bf16 || rows.type == DType::f16,
           "cannot pack " << name_of(rows.type));
  EM_CHECK(!from_codes(format), "numbers for weights of " << name_of(format.storage));
  static PackPanel const best = runnable_packers().back();
  best(format, rows, k, panel);
}

}  // namespace expertmesh
