// The memory that a coordinator shares with one worker of its host: two rings, one each way. It has no name in any file
// system, so nothing is left behind when its processes end, however they end; the worker opens it through the
// coordinator's /proc folder. That both see the same memory is shown by numbers that each writes and the other reads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/base/error.h"
#include "common/transport/shm_ring.h"

namespace expertmesh {

// Memory could not be shared: call, code, text, and what it was about.
class ShmError : public OutsideError {
 public:
  using OutsideError::OutsideError;
};

struct ShmShape {
  ShmRingShape to_worker;
  ShmRingShape to_coordinator;

  [[nodiscard]] std::size_t memory_bytes() const;  // of the area; pages count when they are first used
};

// One end of it. The mapping goes with the end.
class ShmArea {
 public:
  // The coordinator's end. Throws ShmError.
  static ShmArea make(ShmShape const& shape);
  // The worker's: offer: as the coordinator's offer() says. Throws ShmError, also where the offer names other memory.
  static ShmArea open(std::string const& offer);

  ShmArea(ShmArea&& other) noexcept;
  ShmArea& operator=(ShmArea&&) = delete;
  ShmArea(ShmArea const&) = delete;
  ShmArea& operator=(ShmArea const&) = delete;
  ~ShmArea();

  // ---- the coordinator's end
  // For one process of this host and user; one line.
  [[nodiscard]] std::string offer() const;
  // Whether a process that has the offer has opened this memory and written to it.
  [[nodiscard]] bool accepted() const;
  // Nobody can open it any more.
  void withdraw();

  // ---- the worker's: says that it is going to use it
  void accept();

  [[nodiscard]] ShmRingWriter writer() const;           // to the other end
  [[nodiscard]] ShmRingReader reader() const;           // once each
  [[nodiscard]] std::size_t max_message_bytes() const;  // from this end
  [[nodiscard]] std::size_t size() const { return memory_.size(); }

 private:
  enum class End : std::uint8_t { coordinator, worker };
  struct Head;
  ShmArea(End end, int file, std::span<std::byte> memory, ShmShape const& shape, std::uint64_t token);

  [[nodiscard]] Head* head() const;
  [[nodiscard]] std::span<std::byte> ring(End to) const;
  [[nodiscard]] ShmRingShape const& shape(End to) const;

  End end_;
  int file_;  // -1: closed
  std::span<std::byte> memory_;
  ShmShape shape_;
  std::uint64_t token_;
};

}  // namespace expertmesh
