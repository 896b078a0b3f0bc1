// Messages one way through memory that two processes have mapped: a ring of slots, each with room for the longest
// message. One end writes, the other reads. There is nothing to be held, so whoever dies, at whatever instruction,
// leaves the other end a ring that it can go on looking at; and neither end believes what the other writes: see
// failure().
//
// The memory: RingHead | slots of SlotHead | message, padded to 64. The writer fills a slot and then numbers it; the
// reader counts what it has taken. Messages are numbered from 1 and never wrap.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "common/transport/transport.h"

namespace expertmesh {

struct ShmRingShape {
  std::size_t num_slots = 4;   // messages that may lie there, taken by nobody yet
  std::size_t slot_bytes = 0;  // of the longest message

  [[nodiscard]] std::size_t stride() const;        // bytes from slot to slot
  [[nodiscard]] std::size_t memory_bytes() const;  // a multiple of 64
};

namespace shm {

// Each word on a line of its own; one end writes it, but for `waiting`, which the writer puts back.
struct RingHead {
  alignas(64) std::atomic<std::uint64_t> taken;    // messages; by the reader
  alignas(64) std::atomic<std::uint32_t> waiting;  // by the reader: 1: it sleeps until this is 0
};
struct alignas(64) SlotHead {
  std::atomic<std::uint64_t> number;  // of the message that lies here, written last
  std::uint64_t bytes;
  std::uint32_t tag;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

}  // namespace shm

// memory, of both: memory_bytes() that begin on a cache line, all zero before either end is made, and that outlive
// both.
class ShmRingWriter {
 public:
  ShmRingWriter(std::span<std::byte> memory, ShmRingShape shape);

  // Copies a message of at most slot_bytes into the next slot; false: all are taken, or the other end is broken.
  [[nodiscard]] bool write(MessageTag tag, std::span<std::byte const> message);
  // If it sleeps it does not see by itself what was written since. Any thread.
  void wake_reader();
  // What the other end did that no sound one does; empty: nothing.
  [[nodiscard]] std::string const& failure() const { return failure_; }

 private:
  [[nodiscard]] bool has_room();

  std::span<std::byte> memory_;
  ShmRingShape shape_;
  shm::RingHead* head_;
  std::uint64_t written_ = 0;  // messages
  std::uint64_t taken_ = 0;    // as last seen
  std::string failure_;
};

class ShmRingReader {
 public:
  ShmRingReader(std::span<std::byte> memory, ShmRingShape shape);

  struct Message {
    MessageTag tag;
    std::span<std::byte const> bytes;  // where they lie: a broken writer may still change them
  };
  // The oldest one not taken yet, if there is any.
  [[nodiscard]] std::optional<Message> front();
  void take();                          // the front: its slot is the writer's again
  [[nodiscard]] bool anything() const;  // whether front() has something to look at; any thread between two take()
  [[nodiscard]] std::string const& failure() const { return failure_; }

  // Between these two wake_reader() wakes whoever waits for waiting() to be 0 with a futex. False: something is there.
  [[nodiscard]] bool begin_wait();
  void end_wait();
  [[nodiscard]] std::atomic<std::uint32_t>& waiting() { return head_->waiting; }

 private:
  [[nodiscard]] shm::SlotHead* next_slot() const;

  std::span<std::byte> memory_;
  ShmRingShape shape_;
  shm::RingHead* head_;
  std::uint64_t taken_ = 0;  // messages
  std::string failure_;
};

}  // namespace expertmesh
