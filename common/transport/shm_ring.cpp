#include "common/transport/shm_ring.h"

#include <cstring>

#include "common/base/check.h"
#include "common/transport/futex.h"

namespace expertmesh {
namespace {

constexpr std::size_t kLine = 64;

std::size_t in_whole_lines(std::size_t bytes) {
  return (bytes + kLine - 1) / kLine * kLine;
}

// Where the message of this number lies.
shm::SlotHead* slot_of(std::span<std::byte> memory, ShmRingShape shape, std::uint64_t number) {
  std::size_t const index = static_cast<std::size_t>((number - 1) % shape.num_slots);
  return reinterpret_cast<shm::SlotHead*>(memory.data() + sizeof(shm::RingHead) + index * shape.stride());
}

std::byte* message_in(shm::SlotHead* slot) {
  return reinterpret_cast<std::byte*>(slot + 1);
}

shm::RingHead* head_of(std::span<std::byte> memory, ShmRingShape shape) {
  EM_CHECK(shape.num_slots > 0 && memory.size() >= shape.memory_bytes() &&
               reinterpret_cast<std::uintptr_t>(memory.data()) % kLine == 0,
           "a ring of " << shape.num_slots << " slots of " << shape.slot_bytes << " bytes in " << memory.size());
  return reinterpret_cast<shm::RingHead*>(memory.data());
}

}  // namespace

std::size_t ShmRingShape::stride() const {
  return sizeof(shm::SlotHead) + in_whole_lines(slot_bytes);
}
std::size_t ShmRingShape::memory_bytes() const {
  return sizeof(shm::RingHead) + num_slots * stride();
}

// ---- writer

ShmRingWriter::ShmRingWriter(std::span<std::byte> memory, ShmRingShape shape)
    : memory_(memory), shape_(shape), head_(head_of(memory, shape)) {}

bool ShmRingWriter::has_room() {
  if (written_ - taken_ < shape_.num_slots) return true;  // it can only have become more
  std::uint64_t const taken = head_->taken.load(std::memory_order_acquire);
  if (taken < taken_ || taken > written_) {
    failure_ = "has taken " + std::to_string(taken) + " messages of " + std::to_string(written_) + ", and " +
               std::to_string(taken_) + " before";
    return false;
  }
  taken_ = taken;
  return written_ - taken_ < shape_.num_slots;
}

bool ShmRingWriter::write(MessageTag tag, std::span<std::byte const> message) {
  EM_CHECK(message.size() <= shape_.slot_bytes,
           "message of " << message.size() << " bytes, slots of " << shape_.slot_bytes);
  if (!failure_.empty() || !has_room()) return false;
  shm::SlotHead* const slot = slot_of(memory_, shape_, ++written_);
  slot->bytes = message.size();
  slot->tag = tag.value();
  if (!message.empty()) std::memcpy(message_in(slot), message.data(), message.size());
  slot->number.store(written_, std::memory_order_release);
  return true;
}

void ShmRingWriter::wake_reader() {
  // Either the reader, about to sleep, sees the number, or it is seen here that it sleeps.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (head_->waiting.load(std::memory_order_relaxed) == 0) return;
  head_->waiting.store(0, std::memory_order_relaxed);
  futex_wake(head_->waiting);
}

// ---- reader

ShmRingReader::ShmRingReader(std::span<std::byte> memory, ShmRingShape shape)
    : memory_(memory), shape_(shape), head_(head_of(memory, shape)) {}

shm::SlotHead* ShmRingReader::next_slot() const {
  return slot_of(memory_, shape_, taken_ + 1);
}

bool ShmRingReader::anything() const {
  return next_slot()->number.load(std::memory_order_acquire) == taken_ + 1;
}

std::optional<ShmRingReader::Message> ShmRingReader::front() {
  if (!failure_.empty() || !anything()) return std::nullopt;
  shm::SlotHead* const slot = next_slot();
  // Read once: what is checked is what is used.
  std::uint64_t const bytes = reinterpret_cast<std::uint64_t const volatile&>(slot->bytes);
  std::uint32_t const tag = reinterpret_cast<std::uint32_t const volatile&>(slot->tag);
  if (bytes > shape_.slot_bytes || tag > kMaxTag) {
    failure_ = "has sent " + std::to_string(bytes) + " bytes with tag " + std::to_string(tag) + " in a slot of " +
               std::to_string(shape_.slot_bytes);
    return std::nullopt;
  }
  return Message{.tag = MessageTag(tag), .bytes = {message_in(slot), static_cast<std::size_t>(bytes)}};
}

void ShmRingReader::take() {
  head_->taken.store(++taken_, std::memory_order_release);
}

bool ShmRingReader::begin_wait() {
  head_->waiting.store(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!anything()) return true;
  end_wait();
  return false;
}

void ShmRingReader::end_wait() {
  head_->waiting.store(0, std::memory_order_relaxed);
}

}  // namespace expertmesh
