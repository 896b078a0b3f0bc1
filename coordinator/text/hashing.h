// Open-addressing tables for what is looked up with every few bytes of text. They are filled at load and read only
// then, so no text can make them slow.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace expertmesh {

inline std::uint64_t mixed(std::uint64_t x) {
  x *= 0x9E3779B97F4A7C15ULL;
  return x ^ x >> 32;
}

inline std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = text.size();
  while (text.size() >= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data(), 8);
    hash = mixed(hash ^ word);
    text.remove_prefix(8);
  }
  std::uint64_t rest = 0;
  std::memcpy(&rest, text.data(), text.size());
  return mixed(mixed(hash ^ rest));
}

// 64-bit key -> Value. No key is all ones.
template <class Value>
class KeyTable {
 public:
  void reserve(std::size_t count) { slots_.assign(std::bit_ceil(2 * count + 1), {}); }
  // Replaces what the key had.
  void put(std::uint64_t key, Value value) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    Slot& slot = slots_[place(key)];
    size_ += slot.key == kEmpty;
    slot = {key, value};
  }
  [[nodiscard]] Value const* find(std::uint64_t key) const {
    if (slots_.empty()) return nullptr;
    Slot const& slot = slots_[place(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  struct Slot {
    std::uint64_t key = kEmpty;
    Value value{};
  };
  [[nodiscard]] std::size_t place(std::uint64_t key) const {
    std::size_t at = mixed(key) & (slots_.size() - 1);
    while (slots_[at].key != key && slots_[at].key != kEmpty) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  void grow() {
    std::vector<Slot> old = std::move(slots_);
    slots_.assign(std::max<std::size_t>(16, 2 * old.size()), {});
    for (Slot const& slot : old)
      if (slot.key != kEmpty) slots_[place(slot.key)] = slot;
  }
  std::vector<Slot> slots_;  // a power of two of them, at most half of them full
  std::size_t size_ = 0;
};

// Strings -> numbers. The strings lie one behind the other.
class StringTable {
 public:
  void reserve(std::size_t count) { slots_.assign(std::bit_ceil(2 * count + 1), {}); }
  void put(std::string_view text, std::int32_t value) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    std::uint64_t const hash = hash_of(text);
    Slot& slot = slots_[place(text, hash)];
    if (slot.length == kEmpty) {
      ++size_;
      slot = {static_cast<std::uint32_t>(hash >> 32), static_cast<std::uint32_t>(text.size()), bytes_.size(), value};
      bytes_ += text;
    }
    slot.value = value;
  }
  [[nodiscard]] std::int32_t const* find(std::string_view text) const {
    if (slots_.empty()) return nullptr;
    Slot const& slot = slots_[place(text, hash_of(text))];
    return slot.length == kEmpty ? nullptr : &slot.value;
  }

 private:
  static constexpr std::uint32_t kEmpty = ~std::uint32_t{0};
  struct Slot {
    std::uint32_t hash = 0;
    std::uint32_t length = kEmpty;
    std::size_t begin = 0;
    std::int32_t value = 0;
  };
  [[nodiscard]] std::size_t place(std::string_view text, std::uint64_t hash) const {
    std::size_t at = hash & (slots_.size() - 1);
    while (slots_[at].length != kEmpty &&
           (slots_[at].hash != hash >> 32 || slots_[at].length != text.size() ||
            std::memcmp(bytes_.data() + slots_[at].begin, text.data(), text.size()) != 0))
      at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  void grow() {
    std::vector<Slot> old = std::move(slots_);
    slots_.assign(std::max<std::size_t>(16, 2 * old.size()), {});
    for (Slot const& slot : old)
      if (slot.length != kEmpty) {
        std::string_view const text = std::string_view(bytes_).substr(slot.begin, slot.length);
        slots_[place(text, hash_of(text))] = slot;
      }
  }
  std::vector<Slot> slots_;
  std::string bytes_;
  std::size_t size_ = 0;
};

}  // namespace expertmesh
