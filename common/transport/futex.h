// Sleep until another process, which has the same memory mapped, says so.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>

namespace expertmesh {

// At most so long, and only while every word still has the value 1; any of them may end it. At most 128 words; where
// the kernel cannot wait for several (before Linux 5.16), or may not, sleeps for some 70 microseconds instead.
void futex_wait_for_any(std::span<std::atomic<std::uint32_t>* const> words, std::chrono::nanoseconds most);
void futex_wake(std::atomic<std::uint32_t>& word);

}  // namespace expertmesh
