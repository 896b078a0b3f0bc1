#include "common/checkpoint/packed_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <utility>

#include "common/base/checksum.h"
#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/log.h"
#include "common/checkpoint/fingerprint.h"
#include "common/checkpoint/mapped_file.h"
#include "common/checkpoint/weight_source.h"

namespace expertmesh {
namespace {

constexpr std::string_view kMagic = "EMPACK01";
constexpr std::size_t kUnit = 4096;                        // what begins, begins at a multiple of it
constexpr std::size_t kWriteBytes = std::size_t{4} << 20;  // between two looks at whether to go on
constexpr char const* kPart = ".part";                     // of temporary names
constexpr std::chrono::hours kAbandoned{1};                // since a temporary file was last written

std::size_t whole_units(std::size_t bytes) {
  return (bytes + kUnit - 1) / kUnit * kUnit;
}

class File {
 public:
  File(std::filesystem::path const& path, int flags) : path_(path.string()), fd_(open(path.c_str(), flags, 0644)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(File const&) = delete;
  File& operator=(File const&) = delete;

  [[nodiscard]] bool is_open() const { return fd_ >= 0; }
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] FileError error(char const* call, int code) const { return {call, code, std::strerror(code), path_}; }
  // Throw FileError.
  void write(std::span<std::byte const> from) const {
    while (!from.empty()) {
      auto const count = ::write(fd_, from.data(), from.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw error("write", errno);
      from = from.subspan(static_cast<std::size_t>(count));
    }
  }
  void flush() const {
    if (fsync(fd_) != 0) throw error("fsync", errno);
  }

 private:
  std::string const path_;
  int const fd_;
};

// What a file with these parts begins with.
std::string header_of(std::string_view key, std::span<std::size_t const> sizes, std::uint64_t sum) {
  std::string header(kMagic);
  auto const put = [&](std::uint64_t number) {
    for (int shift = 0; shift < 64; shift += 8) header += static_cast<char>(number >> shift & 0xff);
  };
  put(sum);
  put(sizes.size());
  for (std::size_t const size : sizes) put(size);
  put(key.size());
  header += key;
  header.resize(whole_units(header.size()));
  return header;
}

std::size_t file_bytes(std::size_t header, std::span<std::size_t const> sizes) {
  for (std::size_t const size : sizes) header += whole_units(size);
  return header;
}

std::uint64_t sum_in(std::string_view header) {
  std::uint64_t sum = 0;
  for (std::size_t i = 8; i-- > 0;) sum = sum << 8 | static_cast<unsigned char>(header[kMagic.size() + i]);
  return sum;
}

std::vector<std::size_t> sizes_of(std::span<std::span<std::byte const> const> parts) {
  std::vector<std::size_t> sizes;
  for (auto const& part : parts) sizes.push_back(part.size());
  return sizes;
}

bool is_there(std::filesystem::path const& path, std::string_view header, std::size_t size) {
  std::error_code error;
  if (std::filesystem::file_size(path, error) != size || error) return false;
  MappedFile const file(path);
  return std::string_view(reinterpret_cast<char const*>(file.bytes().data()), file.bytes().size()).starts_with(header);
}

// Those that a process left behind which was ended while it wrote them.
void remove_abandoned(std::filesystem::path const& folder) {
  std::error_code error;
  auto const now = std::filesystem::file_time_type::clock::now();
  for (auto const& file : std::filesystem::directory_iterator(folder, error)) {
    if (!file.path().filename().string().ends_with(kPart)) continue;
    auto const written = file.last_write_time(error);
    if (!error && now - written > kAbandoned) std::filesystem::remove(file.path(), error);
  }
}

}  // namespace

PackedCache::PackedCache(std::filesystem::path folder, std::string identity)
    : folder_(std::move(folder)), identity_(std::move(identity)) {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) {
    spdlog::error("packed cache: {}: {}: nothing is kept", folder_.string(), error.message());
    failed_ = true;
  }
  remove_abandoned(folder_);
  writer_ = std::jthread([this](std::stop_token const& stop) { write_jobs(stop); });
}

PackedCache::~PackedCache() = default;

std::string PackedCache::text_of(Entry const& entry) const {
  return identity_ + '\n' + entry.key;
}

std::optional<PackedCache::Kept> PackedCache::read(Entry const& entry, std::span<std::size_t const> sizes) const {
  std::filesystem::path const path = folder_ / entry.name;
  std::string why;
  try {
    auto const file = std::make_shared<MappedFile const>(path);
    Kept kept{.parts = {}, .keeper = file};
    why = reason_to_refuse(entry, file->bytes(), sizes, kept);
    if (why.empty()) {
      bytes_read_.fetch_add(file->bytes().size(), std::memory_order_relaxed);
      return kept;
    }
  } catch (FileError const& error) {
    if (error.code == ENOENT) return std::nullopt;
    why = error.what();
  }
  spdlog::warn("packed cache: {}: {}: packed anew", path.string(), why);
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  return std::nullopt;
}

// Empty: none, and then the parts are `kept`.
std::string PackedCache::reason_to_refuse(Entry const& entry, std::span<std::byte const> file,
                                          std::span<std::size_t const> sizes, Kept& kept) const {
  std::string_view const text(reinterpret_cast<char const*>(file.data()), file.size());
  if (!text.starts_with(kMagic)) return "not a file of this cache";
  std::string const key = text_of(entry);
  if (text.size() < header_of(key, sizes, 0).size()) return "cut off";
  std::uint64_t const sum = sum_in(text);
  std::string const header = header_of(key, sizes, sum);
  if (!text.starts_with(header)) return "of another checkpoint, or packed in another way";
  std::size_t const size = file_bytes(header.size(), sizes);
  if (text.size() != size) return std::to_string(text.size()) + " bytes, not " + std::to_string(size);
  std::size_t at = header.size();
  for (std::size_t const part : sizes) {
    kept.parts.push_back(file.subspan(at, part));
    kept.checksum = checksum_in_pieces(kept.parts.back(), kept.checksum);
    at += whole_units(part);
  }
  return kept.checksum == sum ? "" : "its checksum does not fit";
}

void PackedCache::keep(Entry entry, std::weak_ptr<void const> owner, std::vector<std::span<std::byte const>> parts) {
  if (failed_) return;
  std::lock_guard const lock(mutex_);
  jobs_.push_back({std::move(entry), std::move(owner), std::move(parts)});
  changed_.notify_all();
}

void PackedCache::wait_until_written() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return jobs_.empty() && !writing_; });
}

void PackedCache::write_jobs(std::stop_token const& stop) {
  give_way_to_others();
  for (;;) {
    std::optional<Job> job;
    {
      std::unique_lock lock(mutex_);
      writing_ = false;
      if (jobs_.empty()) {
        if (num_written_ > 0)
          spdlog::info("packed cache: {} experts, {:.3f} GB, written to {}", num_written_,
                       static_cast<double>(bytes_written_) / 1e9, folder_.string());
        num_written_ = bytes_written_ = 0;
        changed_.notify_all();
      }
      if (!changed_.wait(lock, stop, [&] { return !jobs_.empty(); })) return;
      job.emplace(std::move(jobs_.front()));
      jobs_.pop_front();
      writing_ = true;
    }
    auto const owner = job->owner.lock();
    if (!owner || failed_) continue;
    try {
      if (!write(*job, stop)) return;
    } catch (FileError const& error) {
      spdlog::error("packed cache: {}: no more is kept", error.what());
      failed_ = true;
    }
  }
}

bool PackedCache::write(Job const& job, std::stop_token const& stop) {
  static std::atomic<unsigned> counter = 0;
  std::uint64_t sum = 0;
  for (auto const& part : job.parts) sum = checksum_in_pieces(part, sum);
  std::vector<std::size_t> const sizes = sizes_of(job.parts);
  std::string const header = header_of(text_of(job.entry), sizes, sum);
  std::size_t const size = file_bytes(header.size(), sizes);
  std::filesystem::path const path = folder_ / job.entry.name;
  if (is_there(path, header, size)) return true;  // another process has written it meanwhile
  std::filesystem::path const temporary =
      path.string() + "." + std::to_string(getpid()) + "-" + std::to_string(counter++) + kPart;
  struct Remover {
    std::filesystem::path const& path;
    ~Remover() {
      std::error_code ignored;
      std::filesystem::remove(path, ignored);
    }
  } const remover{temporary};
  File const file(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC);
  if (!file.is_open()) throw file.error("open", errno);
  static constexpr std::array<std::byte, kUnit> kPadding{};
  file.write(std::as_bytes(std::span(header)));
  for (auto const& part : job.parts) {
    for (std::size_t begin = 0; begin < part.size(); begin += kWriteBytes) {
      if (stop.stop_requested()) return false;
      file.write(part.subspan(begin, std::min(kWriteBytes, part.size() - begin)));
    }
    file.write(std::span(kPadding).first(whole_units(part.size()) - part.size()));
  }
  file.flush();
  if (rename(temporary.c_str(), path.c_str()) != 0) throw file.error("rename", errno);
  ++num_written_;
  bytes_written_ += size;
  return true;
}

namespace {

class CachedWeights final : public WeightSource {
 public:
  CachedWeights(std::unique_ptr<WeightSource> source, std::filesystem::path folder, std::string identity)
      : source_(std::move(source)), cache_(std::move(folder), std::move(identity)) {}
  [[nodiscard]] bool holds(std::string_view name) const override { return source_->holds(name); }
  void verify(ExpectedTensors const& expected) const override { source_->verify(expected); }
  [[nodiscard]] PackedCache* packed_cache() const override { return &cache_; }

 private:
  [[nodiscard]] StoredTensor read(TensorInfo const& tensor, std::optional<std::size_t> index) const override {
    return index ? source_->load_entry(tensor, *index) : source_->load(tensor);
  }

  std::unique_ptr<WeightSource> const source_;
  mutable PackedCache cache_;
};

}  // namespace

std::unique_ptr<WeightSource> with_packed_cache(std::unique_ptr<WeightSource> source, std::filesystem::path const& dir,
                                                Fingerprint const& checkpoint, DType storage) {
  std::string const folder = checkpoint.config.substr(0, 16) + "-" + std::string(name_of(storage));
  std::string const identity =
      checkpoint.config + ' ' + checkpoint.tensors + ' ' + checkpoint.sizes + ' ' + checkpoint.times;
  return std::make_unique<CachedWeights>(std::move(source), dir / folder, identity);
}

}  // namespace expertmesh
