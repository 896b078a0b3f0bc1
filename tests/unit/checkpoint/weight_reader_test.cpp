#include "common/checkpoint/weight_reader.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "common/base/bf16.h"
#include "common/base/small_floats.h"
#include "tests/support/memory_weights.h"
#include "tests/support/model_copy.h"

namespace expertmesh {
namespace {

using test::expect_words;
using test::MemoryWeights;
using test::refusal;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// ---- a slow oracle: one element at a time, from the description of the formats
template <class T>
T at(std::span<std::byte const> bytes, std::size_t index) {
  T x;
  std::memcpy(&x, bytes.data() + index * sizeof(T), sizeof(T));
  return x;
}

float number(std::span<std::byte const> bytes, DType dtype, std::size_t index) {
  if (dtype == DType::f32) return at<float>(bytes, index);
  return dtype == DType::bf16 ? to_float(at<bf16>(bytes, index)) : to_float(at<fp16>(bytes, index));
}

// Element (n,k) of the weight [rows,K].
float element_of(MemoryWeights const& source, WeightSlice const& w, DType dtype, std::size_t rows, std::size_t width,
                 std::size_t n, std::size_t k) {
  std::size_t const row = w.first_row + n * w.row_step;
  std::size_t const stored = w.stored_rows == 0 ? rows : w.stored_rows;
  std::size_t const y = w.transposed ? k : row;
  std::size_t const x = w.transposed ? row : k;
  std::size_t const height = w.transposed ? width : stored;
  std::size_t const columns = w.transposed ? stored : width;
  std::size_t const element = (w.index * height + y) * columns + x;
  switch (w.storage) {
    case WeightStorage::numbers:
      return number(source.bytes(w.name), dtype, element);
    case WeightStorage::fp8_blocks: {
      auto const up = [](std::size_t a, std::size_t b) { return a / b + (a % b != 0 ? 1 : 0); };
      std::size_t const blocks_y = up(height, w.block_rows);
      std::size_t const blocks_x = up(columns, w.block_columns);
      std::size_t const block = (w.index * blocks_y + y / w.block_rows) * blocks_x + x / w.block_columns;
      return e4m3_to_float(at<std::uint8_t>(source.bytes(w.name), element)) *
             number(source.bytes(w.name + "_scale_inv"), dtype, block);
    }
    case WeightStorage::fp8_scaled:
    case WeightStorage::integers:
      break;  // stored_integers_test.cpp
    case WeightStorage::mxfp4: {
      auto const pair = at<std::uint8_t>(source.bytes(w.name + "_blocks"), element / 2);
      auto const nibble = static_cast<std::uint8_t>(element % 2 == 0 ? pair & 15 : pair >> 4);
      auto const scale = at<std::uint8_t>(source.bytes(w.name + "_scales"), element / 32);
      return e2m1_to_float(nibble) * (scale == 255 ? kNaN : std::ldexp(1.0F, scale - 127));
    }
  }
  return kNaN;
}

// Fills with what the dtype has of finite and other numbers.
void fill(std::span<std::byte> bytes, DType dtype, std::mt19937& random) {
  for (std::size_t i = 0; i < bytes.size() / size_of(dtype); ++i) {
    float const x = std::ldexp(static_cast<float>(static_cast<int>(random() % 4001) - 2000), -9);
    if (dtype == DType::f32) std::memcpy(&bytes[4 * i], &x, 4);
    bf16 const half = to_bf16(x);
    if (dtype == DType::bf16) std::memcpy(&bytes[2 * i], &half, 2);
    if (dtype == DType::f16) {
      auto const bits = static_cast<std::uint16_t>(random() & 0xbfff);  // any but the largest: finite, and subnormal
      std::memcpy(&bytes[2 * i], &bits, 2);
    }
    if (size_of(dtype) == 1) bytes[i] = static_cast<std::byte>(random());
  }
}

// Adds the tensors behind a slice, from the description in weight_slice.h.
void add_tensors(MemoryWeights& source, WeightSlice const& w, DType dtype, std::size_t rows, std::size_t width,
                 std::mt19937& random) {
  auto const add = [&](std::string const& name, DType type, std::vector<std::size_t> shape) {
    if (w.stack != 0) shape.insert(shape.begin(), w.stack);
    fill(source.add(name, type, std::move(shape)), type, random);
  };
  std::size_t const stored = w.stored_rows == 0 ? rows : w.stored_rows;
  std::size_t const height = w.transposed ? width : stored;
  std::size_t const columns = w.transposed ? stored : width;
  if (w.storage == WeightStorage::numbers) add(w.name, dtype, {height, columns});
  if (w.storage == WeightStorage::fp8_blocks) {
    add(w.name, DType::f8_e4m3, {height, columns});
    add(w.name + "_scale_inv", dtype,
        {(height + w.block_rows - 1) / w.block_rows, (columns + w.block_columns - 1) / w.block_columns});
  }
  if (w.storage == WeightStorage::mxfp4) {
    add(w.name + "_blocks", DType::u8, {height, columns / 32, 16});
    add(w.name + "_scales", DType::u8, {height, columns / 32});
  }
}

std::vector<float> read_all(WeightReader& reader, WeightSlice const& w, std::size_t rows, std::size_t width) {
  std::vector<float> out;
  reader.read(w, rows, width, [&](WeightRows const& part) {
    EXPECT_EQ(part.first * width, out.size()) << "rows out of order";
    EXPECT_GT(part.count, 0U);
    StoredTensor view;
    view.dtype = part.type;
    view.bytes = {part.data, part.count * width * size_of(part.type)};
    auto const floats = to_floats(view);
    out.insert(out.end(), floats.begin(), floats.end());
  });
  return out;
}

// The same out of codes and scales, as they are handed out.
std::vector<float> read_all_codes(WeightReader& reader, WeightSlice const& w, std::size_t rows, std::size_t width) {
  std::vector<float> out;
  reader.read_codes(w, rows, width, [&](WeightCodes const& part) {
    EXPECT_EQ(part.first * width, out.size()) << "rows out of order";
    EXPECT_GT(part.count, 0U);
    std::size_t const scales = (width + scale_width(w) - 1) / scale_width(w);  // of a row
    for (std::size_t r = 0; r < part.count; ++r)
      for (std::size_t k = 0; k < width; ++k) {
        std::size_t const scale = r * scales + k / scale_width(w);
        if (w.storage == WeightStorage::mxfp4) {
          auto const both = std::to_integer<std::uint8_t>(part.codes[(r * width + k) / 2]);
          auto const code = static_cast<std::uint8_t>(k % 2 == 0 ? both & 15U : both >> 4U);
          out.push_back(e2m1_to_float(code) * e8m0_to_float(std::to_integer<std::uint8_t>(part.scales[scale])));
        } else {
          float times;
          std::memcpy(&times, part.scales + scale * sizeof times, sizeof times);
          out.push_back(e4m3_to_float(std::to_integer<std::uint8_t>(part.codes[r * width + k])) * times);
        }
      }
  });
  return out;
}

std::size_t num_wrong(MemoryWeights const& source, WeightSlice const& w, DType dtype, std::size_t rows,
                      std::size_t width) {
  WeightReader reader(source);
  std::vector<std::vector<float>> reads = {read_all(reader, w, rows, width)};
  if (w.storage != WeightStorage::numbers) reads.push_back(read_all_codes(reader, w, rows, width));
  std::size_t wrong = 0;
  for (auto const& read : reads) {
    if (read.size() != rows * width) return rows * width;
    for (std::size_t n = 0; n < rows; ++n)
      for (std::size_t k = 0; k < width; ++k) {
        float const expected = element_of(source, w, dtype, rows, width, n, k);
        float const x = read[n * width + k];
        wrong += std::isnan(expected) ? !std::isnan(x) : std::bit_cast<int>(x) != std::bit_cast<int>(expected);
      }
  }
  return wrong;
}

// Every part of a stored matrix that the layouts of published checkpoints have, and odd ones.
std::vector<WeightSlice> parts_of(std::size_t rows, WeightStorage storage) {
  std::vector<WeightSlice> out;
  for (std::size_t stack : {0, 3})
    for (bool transposed : {false, true}) {
      if (transposed && storage == WeightStorage::mxfp4) continue;
      WeightSlice const w{
          .name = "w", .stack = stack, .index = stack == 0 ? 0U : 1U, .transposed = transposed, .storage = storage};
      auto const add = [&](std::size_t stored, std::size_t first, std::size_t step) {
        WeightSlice part = w;
        part.stored_rows = stored;
        part.first_row = first;
        part.row_step = step;
        out.push_back(part);
      };
      add(0, 0, 1);                 // all of it
      add(2 * rows, 0, 1);          // the first half
      add(2 * rows, rows, 1);       // the second
      add(2 * rows, 0, 2);          // the even rows
      add(2 * rows, 1, 2);          // the odd ones
      add(3 * rows + 7, 5, 3);      // in between
      add(rows + 260, 2 * 129, 1);  // far from the first block
    }
  return out;
}

TEST(WeightReader, NumbersHoweverTheyLie) {
  std::mt19937 random(1);
  for (DType const dtype : {DType::f32, DType::bf16, DType::f16})
    for (std::size_t rows : {1, 3, 17})
      for (std::size_t width : {1, 5, 33, 129})
        for (WeightSlice const& w : parts_of(rows, WeightStorage::numbers)) {
          MemoryWeights source;
          add_tensors(source, w, dtype, rows, width, random);
          EXPECT_EQ(num_wrong(source, w, dtype, rows, width), 0U)
              << name_of(dtype) << " [" << rows << "," << width << "] stored " << w.stored_rows << " first "
              << w.first_row << " step " << w.row_step << " transposed " << w.transposed << " stack " << w.stack;
        }
}

TEST(WeightReader, Fp8InBlocksOfAnySize) {
  std::mt19937 random(2);
  struct Block {
    std::size_t rows, columns;
  };
  for (DType const scales : {DType::f32, DType::bf16})
    for (auto const& block : {Block{128, 128}, {3, 5}, {1, 7}, {200, 1}})
      for (std::size_t rows : {1, 3, 17})
        for (std::size_t width : {1, 5, 33, 129})
          for (WeightSlice w : parts_of(rows, WeightStorage::fp8_blocks)) {
            w.block_rows = block.rows;
            w.block_columns = block.columns;
            MemoryWeights source;
            add_tensors(source, w, scales, rows, width, random);
            EXPECT_EQ(num_wrong(source, w, scales, rows, width), 0U)
                << "blocks " << block.rows << "x" << block.columns << " [" << rows << "," << width << "] stored "
                << w.stored_rows << " first " << w.first_row << " step " << w.row_step << " transposed " << w.transposed
                << " stack " << w.stack;
          }
}

TEST(WeightReader, Mxfp4WithEveryScale) {
  std::mt19937 random(3);
  for (std::size_t rows : {1, 3, 17})
    for (std::size_t width : {32, 64, 160})
      for (WeightSlice const& w : parts_of(rows, WeightStorage::mxfp4)) {
        MemoryWeights source;
        add_tensors(source, w, DType::u8, rows, width, random);
        EXPECT_EQ(num_wrong(source, w, DType::u8, rows, width), 0U)
            << "[" << rows << "," << width << "] stored " << w.stored_rows << " first " << w.first_row << " step "
            << w.row_step << " stack " << w.stack;
      }
}

// Larger than one chunk of rows that are converted together.
TEST(WeightReader, ManyRows) {
  std::mt19937 random(4);
  for (WeightStorage const storage : {WeightStorage::numbers, WeightStorage::fp8_blocks, WeightStorage::mxfp4})
    for (WeightSlice const& w : parts_of(700, storage)) {
      MemoryWeights source;
      add_tensors(source, w, DType::bf16, 700, 352, random);
      EXPECT_EQ(num_wrong(source, w, DType::bf16, 700, 352), 0U)
          << static_cast<int>(storage) << " first " << w.first_row << " step " << w.row_step << " transposed "
          << w.transposed << " stack " << w.stack;
    }
}

TEST(WeightReader, PlainRowsAreNotCopied) {
  std::mt19937 random(5);
  MemoryWeights source;
  WeightSlice const w{.name = "w", .stack = 2, .index = 1, .stored_rows = 10, .first_row = 4};
  add_tensors(source, w, DType::bf16, 3, 5, random);
  std::size_t calls = 0;
  WeightReader(source).read(w, 3, 5, [&](WeightRows const& rows) {
    ++calls;
    EXPECT_EQ(rows.count, 3U);
    EXPECT_EQ(rows.data, source.bytes("w").data() + (10 + 4) * 5 * sizeof(bf16));
  });
  EXPECT_EQ(calls, 1U);
}

TEST(WeightReader, VectorsHoweverTheyLie) {
  std::mt19937 random(6);
  for (DType const dtype : {DType::f32, DType::bf16, DType::f16})
    for (std::size_t n : {1, 3, 17})
      for (VectorSlice const& v :
           {VectorSlice{"v"},
            {.name = "v", .stack = 3, .index = 2},
            {.name = "v", .stored_length = 2 * n, .first = n},
            {.name = "v", .stack = 2, .index = 1, .stored_length = 2 * n, .first = 1, .step = 2}}) {
        MemoryWeights source;
        std::size_t const length = v.stored_length == 0 ? n : v.stored_length;
        std::vector<std::size_t> shape{length};
        if (v.stack != 0) shape.insert(shape.begin(), v.stack);
        fill(source.add("v", dtype, shape), dtype, random);
        auto const read = WeightReader(source).read(v, n);
        ASSERT_EQ(read.size(), n);
        for (std::size_t i = 0; i < n; ++i)
          EXPECT_EQ(read[i], number(source.bytes("v"), dtype, v.index * length + v.first + i * v.step));
      }
}

TEST(WeightReader, PartsOfOneTensorReadInTurnLoadItOnce) {
  std::mt19937 random(7);
  for (WeightStorage const storage : {WeightStorage::numbers, WeightStorage::fp8_blocks, WeightStorage::mxfp4}) {
    MemoryWeights source;
    WeightSlice const gate{.name = "w", .stack = 2, .index = 1, .stored_rows = 6, .storage = storage};
    WeightSlice up = gate;
    up.first_row = 3;
    WeightSlice other = gate;
    other.index = 0;
    add_tensors(source, gate, DType::f32, 3, 32, random);
    WeightReader reader(source);
    std::size_t const tensors = storage == WeightStorage::numbers ? 1 : 2;
    (void)read_all(reader, gate, 3, 32);
    std::size_t const bytes = reader.bytes_read();
    (void)read_all(reader, up, 3, 32);
    EXPECT_EQ(source.reads().size(), tensors);
    EXPECT_EQ(reader.bytes_read(), bytes);
    (void)read_all(reader, other, 3, 32);
    EXPECT_EQ(source.reads().size(), 2 * tensors);
    EXPECT_EQ(source.reads().back().second, 0U);
    EXPECT_EQ(reader.bytes_read(), 2 * bytes);
  }
}

TEST(WeightReader, WhatCannotBeIsRefusedByName) {
  MemoryWeights source;
  WeightReader reader(source);
  auto const ignore = [](WeightRows const&) {};
  expect_words(refusal([&] { reader.read({.name = "a.w", .storage = WeightStorage::mxfp4}, 3, 40, ignore); }),
               {"'a.w'", "40", "32"});
  expect_words(refusal([&] { reader.read(WeightSlice{.name = "a.w", .first_row = 2}, 3, 40, ignore); }),
               {"'a.w'", "of 3 stored"});
  expect_words(refusal([&] { (void)reader.read(VectorSlice{.name = "a.b", .index = 2}, 3); }), {"'a.b'", "stack of 0"});
  expect_words(refusal([&] { reader.read(WeightSlice{"a.w"}, 3, 40, ignore); }), {"'a.w'", "missing"});
}

// ---- the mapped file
TEST(Checkpoint, HasTensorsOfEveryKindAndRefusesThemWhereAnotherIsExpected) {
  test::ScratchDir const dir;
  std::string const header = R"({"n":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},
    "f":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[12,18]},"g":{"dtype":"F8_E5M2","shape":[2,3],"data_offsets":[18,24]},
    "u":{"dtype":"U8","shape":[2,3],"data_offsets":[24,30]},"i":{"dtype":"I8","shape":[2,3],"data_offsets":[30,36]}})";
  std::string data;
  for (char c = 0; c < 36; ++c) data += c;
  test::write_file(dir.path() / "model.safetensors", test::safetensors_bytes(header, data));
  auto const source = open_checkpoint(dir.path());
  std::map<std::string, std::optional<TensorKind>> const kinds = {
      {"n", TensorKind::numbers}, {"f", TensorKind::fp8}, {"g", {}}, {"u", TensorKind::bytes}, {"i", {}}};
  std::map<TensorKind, std::string> const expected = {{TensorKind::numbers, "expected F32, BF16 or F16"},
                                                      {TensorKind::fp8, "expected F8_E4M3"},
                                                      {TensorKind::bytes, "expected U8"}};
  for (auto const& [name, right] : kinds)
    for (auto const& [kind, words] : expected) {
      TensorInfo const info{name, {2, 3}, kind};
      if (kind == right) {
        StoredTensor const whole = source->load(info);
        StoredTensor const second = source->load_entry(info, 1);
        EXPECT_EQ(second.shape, (std::vector<std::size_t>{3}));
        EXPECT_EQ(second.bytes.size() * 2, whole.bytes.size());
        EXPECT_EQ(second.bytes.data(), whole.bytes.data() + whole.bytes.size() / 2);  // a view of the same mapping
        source->verify({.required = {info}, .optional = {}, .skipped_prefixes = {"n", "f", "g", "u", "i"}});
        continue;
      }
      for (auto const& refused : std::vector<std::function<void()>>{
               [&] { (void)source->load(info); }, [&] { (void)source->load_entry(info, 0); },
               [&] {
                 source->verify({{info}, {}, {"n", "f", "g", "u", "i"}});
               },
               [&] {
                 source->verify({{}, {info}, {"n", "f", "g", "u", "i"}});
               }})
        expect_words(refusal(refused), {"model.safetensors", "'" + name + "'", words});
    }
  expect_words(refusal([&] {
                 (void)source->load_entry({"u", {3, 2}, TensorKind::bytes}, 0);
               }),
               {"model.safetensors", "'u'", "[2,3]", "[3,2]"});
  EXPECT_DEATH((void)source->load_entry({"u", {2, 3}, TensorKind::bytes}, 2), "entry 2 of 'u'");
}

}  // namespace
}  // namespace expertmesh
