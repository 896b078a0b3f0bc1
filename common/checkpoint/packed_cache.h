// Experts as they were packed, in a folder, from one start to the next: a file each, so that any one of them can be
// read alone. Knows bytes, not what they mean.
//
// A file: a header that says what it holds (its key: of which weights, packed how) and the checksum of it, padded to
// whole pages; then the parts, each from a page's begin on. Files appear whole: they are written to a temporary name,
// flushed, and renamed. What is not as it should be is not used, and written anew. Any number of processes may use one
// folder.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace expertmesh {

class PackedCache {
 public:
  // identity: of the checkpoint, by which a file of another one is told. folder: made if it is not there. What is in
  // the way is logged, and then nothing is kept.
  PackedCache(std::filesystem::path folder, std::string identity);
  ~PackedCache();  // what is not yet written is not
  PackedCache(PackedCache const&) = delete;
  PackedCache& operator=(PackedCache const&) = delete;

  // name: of the file. key: of what its bytes are a function, beside the checkpoint.
  struct Entry {
    std::string name;
    std::string key;
  };
  // Mapped from the file, whose pages processes share; all of it was read, to see whether the checksum fits.
  struct Kept {
    std::vector<std::span<std::byte const>> parts;
    std::shared_ptr<void const> keeper;  // of the parts
    std::uint64_t checksum = 0;          // checksum_in_pieces() of one part after the other
  };
  // sizes: of the parts that were kept. None: not there, or not as it should be: then that is logged, and it goes. Any
  // thread.
  std::optional<Kept> read(Entry const& entry, std::span<std::size_t const> sizes) const;

  // Writes the parts later, if they are still there then. owner: whoever holds it keeps them. Any thread.
  void keep(Entry entry, std::weak_ptr<void const> owner, std::vector<std::span<std::byte const>> parts);

  void wait_until_written();  // all that was kept so far, or given up

  [[nodiscard]] std::size_t bytes_read() const { return bytes_read_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::filesystem::path const& folder() const { return folder_; }

 private:
  struct Job {
    Entry entry;
    std::weak_ptr<void const> owner;
    std::vector<std::span<std::byte const>> parts;
  };

  void write_jobs(std::stop_token const& stop);
  [[nodiscard]] std::string reason_to_refuse(Entry const& entry, std::span<std::byte const> file,
                                             std::span<std::size_t const> sizes, Kept& kept) const;
  bool write(Job const& job, std::stop_token const& stop);  // false: told to stop
  [[nodiscard]] std::string text_of(Entry const& entry) const;

  std::filesystem::path const folder_;
  std::string const identity_;
  mutable std::atomic<std::size_t> bytes_read_ = 0;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  bool writing_ = false;         // guarded by mutex_, like the next
  std::deque<Job> jobs_;         // guarded by mutex_
  std::size_t num_written_ = 0;  // like the next, of the writing thread
  std::size_t bytes_written_ = 0;
  std::atomic<bool> failed_ = false;  // nothing more is written
  std::jthread writer_;
};

}  // namespace expertmesh
