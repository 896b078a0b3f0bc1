// What all messages of the data plane share. Private to common/protocol.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "common/base/check.h"
#include "common/base/checksum.h"
#include "common/protocol/dispatch_layout.h"

namespace expertmesh::wire_check {

// The structs are the wire: no padding, same on every machine we build for.
static_assert(std::endian::native == std::endian::little);

constexpr std::size_t kAlignment = 64;  // of buffers, and of rows in them

// Of every header: what follows is covered by it.
constexpr std::size_t kChecksumEnd = offsetof(DispatchHeader, checksum) + sizeof DispatchHeader::checksum;

constexpr std::size_t aligned(std::size_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

inline void check_buffer(std::byte const* data, std::size_t size, std::size_t needed) {
  EM_CHECK(reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0, "message buffer at " << data);
  EM_CHECK(size >= needed, "message of " << needed << " bytes in a buffer of " << size);
}

// The part of the checks that all messages share; `header` is filled whenever there are enough bytes for it.
template <class Header>
WireError check_header(std::span<std::byte const> message, std::uint32_t magic, Header& header) {
  if (message.size() < sizeof(Header)) return {WireFault::truncated, message.size(), sizeof(Header), false, {}};
  std::memcpy(&header, message.data(), sizeof(Header));
  if (header.magic != magic) return {WireFault::bad_magic, header.magic, magic, false, {}};
  if (header.version != kDispatchVersion) return {WireFault::bad_version, header.version, kDispatchVersion, false, {}};
  auto const refuse = [&](WireFault fault, std::uint64_t seen, std::uint64_t wanted) {
    return WireError{fault, seen, wanted, true, header.id};
  };
  if ((header.id.flags & ~kImplementedFlags) != 0)
    return refuse(WireFault::unknown_flags, header.id.flags, kImplementedFlags);
  static_assert(offsetof(Header, checksum) + sizeof header.checksum == kChecksumEnd);
  std::uint64_t const sum = (header.id.flags & kFlagChecksum) != 0 ? checksum(message.subspan(kChecksumEnd)) : 0;
  if (header.checksum != sum) return refuse(WireFault::bad_checksum, header.checksum, sum);
  if (header.id.stack != kDecoderStack) return refuse(WireFault::bad_stack, header.id.stack, kDecoderStack);
  return refuse(WireFault::none, 0, 0);
}

// Of what goes to a worker: whether it is this one, as it is now.
template <class Header>
WireError check_receiver(Header const& header, RequestExpectation const& expected) {
  auto const refuse = [&](WireFault fault, std::uint64_t seen, std::uint64_t wanted) {
    return WireError{fault, seen, wanted, true, header.id};
  };
  ExchangeId const& id = header.id;
  if (id.worker_incarnation != expected.worker_incarnation.value())
    return refuse(WireFault::stale_incarnation, id.worker_incarnation, expected.worker_incarnation.value());
  if (id.placement_epoch != expected.epoch.value())
    return refuse(WireFault::stale_epoch, id.placement_epoch, expected.epoch.value());
  if ((id.flags & kFlagRowsApart) != 0 && !expected.rows_apart)
    return refuse(WireFault::unknown_flags, id.flags, kImplementedFlags & ~kFlagRowsApart);
  if ((id.flags & kFlagComesAgain) != 0 && header.magic == kDispatchMagic)
    return refuse(WireFault::unknown_flags, id.flags, kImplementedFlags & ~kFlagComesAgain);
  return refuse(WireFault::none, 0, 0);
}

}  // namespace expertmesh::wire_check
