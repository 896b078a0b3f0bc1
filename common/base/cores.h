// Cores of this host: which of them a thread may run on, and how it waits where there are fewer of them than threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace expertmesh {

std::vector<int> allowed_cores();                    // of the calling thread, in rising order
std::string list_of(std::vector<int> const& cores);  // "0,1"
std::size_t usable_cores();                          // of those and of the cgroups' quota, at least 1

// Cores' worth of time that this process's cgroups give it, the strictest of them; infinity: no limit. root: of the
// file system.
double cpu_quota(std::filesystem::path const& root = "/");

// The calling thread and those it starts from now on run on these cores alone. False where the system refuses: then all
// is as it was.
bool restrict_to_cores(std::vector<int> const& cores);

// The calling thread and those it starts from now on do not push a running thread from its core when they wake: they
// wait for it to sleep, or for their turn. So a worker's looks for a message cost the coordinator's compute threads
// nothing, and a request that has just arrived does not stop the sending of the next one.
void give_way_to_others();

// What a thread does between two looks for a message of another process.
enum class PollPause : std::uint8_t {
  yield,  // there is a core for everyone: look again at once
  // Others compute on this core. A thread that yields still counts as one that wants to run: the system then takes the
  // core for busy and leaves another thread waiting behind its neighbour for milliseconds. So be gone for a moment
  // (some 70 microseconds with Linux's timer slack).
  sleep,
};
void pause_polling(PollPause pause);

}  // namespace expertmesh
