#include "common/protocol/dispatch_layout.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "common/base/aligned_buffer.h"

namespace expertmesh {
namespace {

constexpr std::size_t kHidden = 24;

// A worker that holds 3 experts of layer 2 and 5 of layer 7.
struct Fixture : ::testing::Test {
  std::vector<HeldLayer> layers{{.layer = 2, .hidden = kHidden, .num_experts = 3},
                                {.layer = 7, .hidden = kHidden, .num_experts = 5}};
  RequestExpectation expected{.worker_incarnation = Incarnation(4),
                              .epoch = PlacementEpoch(9),
                              .wire = DType::bf16,
                              .limits = {.max_rows = 10, .max_entries = 20},
                              .layers = layers};
  DispatchLayout layout{kHidden, DType::bf16};
  AlignedBuffer<std::byte> buffer{layout.request_bytes(10, 20)};
  ExchangeId id{.coordinator_id = 77,
                .step = 5,
                .coordinator_incarnation = 1,
                .worker_incarnation = 4,
                .placement_epoch = 9,
                .layer = 7,
                .micro_batch = 1,
                .attempt = 33};

  // 3 rows, 4 entries; row 2 goes to two experts.
  std::span<std::byte> good_request() {
    RequestWriter request = layout.write_request(buffer.span(), id, 3, 4);
    DispatchEntry const entries[] = {{0, 4}, {1, 0}, {2, 1}, {2, 3}};
    std::ranges::copy(entries, request.entries.begin());
    for (std::size_t r = 0; r < 3; ++r) std::memset(request.row(r), static_cast<int>(r) + 1, request.row_bytes);
    return buffer.span().first(request.bytes);
  }

  WireFault fault_of(std::span<std::byte const> message) const {
    auto const parsed = parse_request(message, expected);
    auto const* error = std::get_if<WireError>(&parsed);
    return error != nullptr ? error->fault : WireFault::none;
  }

  // The fault after `change` has been applied to the header of a good request.
  template <class Change>
  WireFault fault_after(Change change) {
    auto const message = good_request();
    DispatchHeader header;
    std::memcpy(&header, message.data(), sizeof header);
    change(header);
    std::memcpy(message.data(), &header, sizeof header);
    return fault_of(message);
  }
};

TEST_F(Fixture, OffsetsAreAlignedAndLeaveNoOverlap) {
  for (DType const wire : {DType::f32, DType::bf16})
    for (std::size_t const hidden : {1U, 7U, 64U, 4096U})
      for (std::size_t entries = 0; entries < 40; ++entries) {
        DispatchLayout const l(hidden, wire);
        EXPECT_EQ(l.row_bytes(), hidden * size_of(wire));
        EXPECT_EQ(l.entries_offset(), sizeof(DispatchHeader));
        EXPECT_EQ(l.request_rows_offset(entries) % 64, 0U);
        EXPECT_GE(l.request_rows_offset(entries), l.entries_offset() + entries * sizeof(DispatchEntry));
        EXPECT_LT(l.request_rows_offset(entries), l.entries_offset() + entries * sizeof(DispatchEntry) + 64);
        EXPECT_EQ(l.request_bytes(5, entries), l.request_rows_offset(entries) + 5 * l.row_bytes());
        EXPECT_EQ(l.answer_rows_offset() % 64, 0U);
        EXPECT_EQ(l.answer_bytes(entries), l.answer_rows_offset() + entries * l.row_bytes());
      }
}

TEST_F(Fixture, LimitsCountEachTokenOnceAndEachSlotTheWorkerCanHold) {
  EXPECT_EQ(DispatchLimits::of(100, 8, 64), (DispatchLimits{.max_rows = 100, .max_entries = 800}));
  EXPECT_EQ(DispatchLimits::of(100, 8, 3), (DispatchLimits{.max_rows = 100, .max_entries = 300}));
  EXPECT_EQ(DispatchLimits::of(100, 8, 0), (DispatchLimits{.max_rows = 100, .max_entries = 0}));
}

TEST_F(Fixture, RequestRoundTrip) {
  auto const parsed = parse_request(good_request(), expected);
  auto const& request = std::get<Request>(parsed);
  EXPECT_EQ(request.header.id, id);
  EXPECT_EQ(request.layer_index, 1U);
  ASSERT_EQ(request.entries.size(), 4U);
  EXPECT_EQ(request.entries[3].row, 2U);
  EXPECT_EQ(request.entries[3].local_expert, 3U);
  for (std::size_t r = 0; r < 3; ++r)
    for (std::size_t i = 0; i < request.row_bytes; ++i) EXPECT_EQ(request.row(r)[i], static_cast<std::byte>(r + 1));
}

TEST_F(Fixture, EmptyRequestIsFine) {
  RequestWriter const request = layout.write_request(buffer.span(), id, 0, 0);
  EXPECT_EQ(fault_of(buffer.span().first(request.bytes)), WireFault::none);
}

TEST_F(Fixture, EveryHeaderFieldIsChecked) {
  EXPECT_EQ(fault_after([](auto&) {}), WireFault::none);
  EXPECT_EQ(fault_after([](auto& h) { h.magic = kAnswerMagic; }), WireFault::bad_magic);
  EXPECT_EQ(fault_after([](auto& h) { h.version = kDispatchVersion + 1; }), WireFault::bad_version);
  EXPECT_EQ(fault_after([](auto& h) { h.id.flags = kFlagGateOnInput; }), WireFault::unknown_flags);
  EXPECT_EQ(fault_after([](auto& h) { h.id.flags = kFlagChecksum; }), WireFault::bad_checksum);
  EXPECT_EQ(fault_after([](auto& h) { h.id.flags = kFlagComesAgain; }), WireFault::unknown_flags) << "it is of steps";
  EXPECT_EQ(fault_after([](auto& h) { h.checksum = 1; }), WireFault::bad_checksum);
  EXPECT_EQ(fault_after([](auto& h) { h.id.stack = 1; }), WireFault::bad_stack);
  EXPECT_EQ(fault_after([](auto& h) { h.id.worker_incarnation = 3; }), WireFault::stale_incarnation);
  EXPECT_EQ(fault_after([](auto& h) { h.id.placement_epoch = 8; }), WireFault::stale_epoch);
  EXPECT_EQ(fault_after([](auto& h) { h.id.layer = 3; }), WireFault::unknown_layer);
  EXPECT_EQ(fault_after([](auto& h) { h.wire = 1; }), WireFault::bad_wire_dtype);
  EXPECT_EQ(fault_after([](auto& h) { h.hidden = kHidden + 1; }), WireFault::bad_hidden);
  EXPECT_EQ(fault_after([](auto& h) { h.num_rows = 11; }), WireFault::too_many_rows);
  EXPECT_EQ(fault_after([](auto& h) { h.num_entries = 21; }), WireFault::too_many_entries);
  EXPECT_EQ(fault_after([](auto& h) { h.num_rows = 0xffffffff; }), WireFault::too_many_rows);
  EXPECT_EQ(fault_after([](auto& h) { h.num_rows = 4; }), WireFault::bad_size);
  EXPECT_EQ(fault_after([](auto& h) { h.num_rows = 2; }), WireFault::bad_size);
}

TEST_F(Fixture, ASealedMessageShowsEveryChange) {
  auto const message = good_request();
  auto* const header = reinterpret_cast<DispatchHeader*>(message.data());
  header->id.flags = kFlagChecksum;
  seal(message);
  EXPECT_EQ(fault_of(message), WireFault::none);
  for (std::size_t i = sizeof(DispatchHeader); i < message.size(); ++i) {
    message[i] ^= std::byte{4};
    EXPECT_EQ(fault_of(message), WireFault::bad_checksum) << "byte " << i;
    message[i] ^= std::byte{4};
  }
  EXPECT_EQ(fault_of(message), WireFault::none);
}

TEST_F(Fixture, IndicesAreChecked) {
  auto const message = good_request();
  auto* entries = reinterpret_cast<DispatchEntry*>(message.data() + layout.entries_offset());
  entries[3] = {3, 0};
  EXPECT_EQ(fault_of(message), WireFault::bad_row_index);
  entries[3] = {0, 5};
  EXPECT_EQ(fault_of(message), WireFault::bad_expert_index);
  entries[3] = {2, 4};
  EXPECT_EQ(fault_of(message), WireFault::none);
}

TEST_F(Fixture, EveryTruncationAndExtensionIsRefused) {
  auto const message = good_request();
  for (std::size_t size = 0; size < message.size(); ++size)
    EXPECT_EQ(fault_of(message.first(size)),
              size < sizeof(DispatchHeader) ? WireFault::truncated : WireFault::bad_size);
  EXPECT_EQ(fault_of(buffer.span().first(message.size() + 1)), WireFault::bad_size);
}

TEST_F(Fixture, AnErrorSaysWhatWasSeenAndWhomToAnswer) {
  fault_after([](auto& h) { h.id.placement_epoch = 8; });
  auto const parsed = parse_request(buffer.span(), expected);
  auto const& error = std::get<WireError>(parsed);
  EXPECT_TRUE(error.id_known);
  EXPECT_EQ(error.id.attempt, 33U);
  EXPECT_EQ(describe(error), "another placement epoch (seen 8, wanted 9)");
}

TEST_F(Fixture, RandomBytesNeverPassAsSomethingOutOfBounds) {
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    auto const message = good_request();
    for (int flips = 0; flips < 3; ++flips)
      message[random() % (sizeof(DispatchHeader) + 4 * sizeof(DispatchEntry))] = static_cast<std::byte>(random());
    auto const parsed = parse_request(message, expected);
    if (auto const* request = std::get_if<Request>(&parsed))
      for (auto const& entry : request->entries) {
        ASSERT_LT(entry.row, 3U);
        ASSERT_LT(entry.local_expert, layers[request->layer_index].num_experts);
      }
  }
}

TEST_F(Fixture, AnswerRoundTripAndItsFaults) {
  AnswerWriter const answer = layout.write_answer(buffer.span(), id, WireFault::none, 4);
  std::memset(answer.row(3), 7, answer.row_bytes);
  auto const message = buffer.span().first(answer.bytes);
  auto const fault = [&](std::span<std::byte const> bytes, ExchangeId const& wanted, std::size_t entries) {
    auto const parsed = parse_answer(bytes, layout, wanted, entries);
    auto const* error = std::get_if<WireError>(&parsed);
    return error != nullptr ? error->fault : WireFault::none;
  };
  auto const parsed = parse_answer(message, layout, id, 4);
  EXPECT_EQ(std::get<Answer>(parsed).row(3)[kHidden * 2 - 1], std::byte{7});

  ExchangeId other = id;
  other.attempt = 34;
  EXPECT_EQ(fault(message, other, 4), WireFault::wrong_exchange);
  other = id;
  other.step = 6;
  EXPECT_EQ(fault(message, other, 4), WireFault::wrong_exchange);
  EXPECT_EQ(fault(message, id, 3), WireFault::bad_size);
  EXPECT_EQ(fault(message.first(message.size() - 1), id, 4), WireFault::bad_size);
  EXPECT_EQ(fault(message.first(sizeof(AnswerHeader) - 1), id, 4), WireFault::truncated);

  AnswerWriter const refusal = layout.write_answer(buffer.span(), id, WireFault::stale_epoch, 4);
  EXPECT_EQ(refusal.bytes, layout.answer_bytes(0));
  EXPECT_EQ(fault(buffer.span().first(refusal.bytes), id, 4), WireFault::stale_epoch);
  reinterpret_cast<AnswerHeader*>(buffer.data())->status = 1000;
  EXPECT_EQ(fault(buffer.span().first(refusal.bytes), id, 4), WireFault::bad_status);
}

TEST_F(Fixture, AnAnswersTimesAreUnderItsChecksum) {
  id.flags = kFlagChecksum;
  AnswerWriter const answer = layout.write_answer(buffer.span(), id, WireFault::none, 4);
  auto const message = buffer.span().first(answer.bytes);
  set_times(message, 17, 19);
  seal(message);
  auto const parsed = parse_answer(message, layout, id, 4);
  EXPECT_EQ(std::get<Answer>(parsed).header.begin_ns, 17U);
  EXPECT_EQ(std::get<Answer>(parsed).header.end_ns, 19U);
  set_times(message, 17, 20);
  EXPECT_EQ(std::get<WireError>(parse_answer(message, layout, id, 4)).fault, WireFault::bad_checksum);
}

TEST_F(Fixture, RowsMayBeApart) {
  id.flags = kFlagRowsApart;
  RequestWriter request = layout.write_request(buffer.span(), id, 3, 4);
  EXPECT_EQ(request.rows, nullptr);
  EXPECT_EQ(request.bytes, layout.request_rows_offset(4));
  DispatchEntry const entries[] = {{0, 4}, {1, 0}, {2, 1}, {2, 3}};
  std::ranges::copy(entries, request.entries.begin());
  auto const message = buffer.span().first(request.bytes);
  EXPECT_EQ(fault_of(message), WireFault::unknown_flags) << "who has no link";
  expected.rows_apart = true;
  auto const parsed = std::get<Request>(parse_request(message, expected));
  EXPECT_EQ(parsed.rows, nullptr);
  EXPECT_EQ(parsed.header.num_rows, 3U);
  EXPECT_EQ(parsed.row_bytes, layout.row_bytes());
  EXPECT_EQ(fault_of(buffer.span().first(request.bytes + 3 * layout.row_bytes())), WireFault::bad_size);
  EXPECT_EQ(fault_of(buffer.span().first(layout.write_request(buffer.span(), id, 0, 0).bytes)), WireFault::bad_size)
      << "nothing to receive";

  AlignedBuffer<std::byte> answer(layout.answer_bytes(4));
  AnswerWriter const written = layout.write_answer(answer.span(), id, WireFault::none, 4);
  EXPECT_EQ(written.bytes, layout.answer_rows_offset());
  auto const good = parse_answer(answer.span().first(written.bytes), layout, id, 4);
  ASSERT_TRUE(std::holds_alternative<Answer>(good));
  EXPECT_EQ(std::get<Answer>(good).rows, nullptr);
  EXPECT_TRUE(std::holds_alternative<WireError>(parse_answer(answer.span(), layout, id, 4))) << "rows as well";
  EXPECT_TRUE(std::holds_alternative<WireError>(parse_answer(answer.span().first(written.bytes), layout, id, 5)));
}

TEST(WireFaults, EachHasItsName) {
  for (std::uint32_t i = 0; i <= static_cast<std::uint32_t>(kLastWireFault); ++i)
    EXPECT_STRNE(name_of(static_cast<WireFault>(i)), "unknown fault");
}

}  // namespace
}  // namespace expertmesh
