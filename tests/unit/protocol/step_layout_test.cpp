#include "common/protocol/step_layout.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "common/base/aligned_buffer.h"

namespace expertmesh {
namespace {

constexpr std::size_t kRowElements = 24;

// A worker with some experts of layers 2, 5 and 7.
struct StepLayoutTest : ::testing::Test {
  std::vector<HeldLayer> held{{.layer = 2, .hidden = kRowElements, .num_experts = 3},
                              {.layer = 5, .hidden = 2 * kRowElements, .num_experts = 0},
                              {.layer = 7, .hidden = kRowElements, .num_experts = 5}};
  RequestExpectation expected{.worker_incarnation = Incarnation(4),
                              .epoch = PlacementEpoch(9),
                              .wire = DType::bf16,
                              .limits = {.max_rows = 10, .max_entries = 30},
                              .layers = held,
                              .rows_apart = true};
  AlignedBuffer<std::byte> buffer{256};
  ExchangeId id{.coordinator_id = 77,
                .step = 5,
                .coordinator_incarnation = 1,
                .worker_incarnation = 4,
                .placement_epoch = 9,
                .layer = 2,
                .attempt = 33,
                .flags = kFlagRowsApart};
  std::vector<StepLayer> layers{{2, kRowElements}, {5, 2 * kRowElements}, {7, kRowElements}};

  std::span<std::byte> written() {
    id.layer = layers.front().layer;
    return buffer.span().first(write_step(buffer.span(), id, 6, 5, layers, DType::bf16));
  }
  WireFault fault_of(std::span<std::byte const> message) const {
    auto const parsed = parse_step(message, expected);
    auto const* error = std::get_if<WireError>(&parsed);
    return error != nullptr ? error->fault : WireFault::none;
  }
  template <class Change>
  WireFault fault_after(Change change) {
    auto const message = written();
    StepHeader header;
    std::memcpy(&header, message.data(), sizeof header);
    change(header);
    std::memcpy(message.data(), &header, sizeof header);
    return fault_of(message);
  }
  WireFault fault_with(std::vector<StepLayer> of) {
    std::swap(layers, of);
    WireFault const fault = fault_of(written());
    std::swap(layers, of);
    return fault;
  }
};

TEST_F(StepLayoutTest, RoundTrip) {
  auto const message = written();
  EXPECT_EQ(message.size(), step_message_bytes(3));
  EXPECT_TRUE(is_step(message));
  EXPECT_EQ(exchange_of(message).value().placement_epoch, 9U);
  auto const request = std::get<StepRequest>(parse_step(message, expected));
  EXPECT_EQ(request.header.id, id);
  EXPECT_EQ(request.header.num_tokens, 6U);
  EXPECT_EQ(request.header.experts_per_token, 5U);
  ASSERT_EQ(request.layers.size(), 3U);
  EXPECT_EQ(request.layers[1].layer, 5U);
  EXPECT_EQ(request.layers[1].hidden, 2 * kRowElements);
  EXPECT_EQ(fault_with({{2, kRowElements}, {7, kRowElements}}), WireFault::none) << "not all of them";
}

TEST_F(StepLayoutTest, EveryHeaderFieldIsChecked) {
  EXPECT_EQ(fault_after([](auto&) {}), WireFault::none);
  EXPECT_EQ(fault_after([](auto& h) { h.magic = kDispatchMagic; }), WireFault::bad_magic);
  EXPECT_EQ(fault_after([](auto& h) { h.version = kDispatchVersion - 1; }), WireFault::bad_version);
  EXPECT_EQ(fault_after([](auto& h) { h.id.flags = 0; }), WireFault::unknown_flags);
  EXPECT_EQ(fault_after([](auto& h) { h.id.flags |= kFlagComesAgain; }), WireFault::none);
  EXPECT_EQ(fault_after([](auto& h) { h.id.flags |= kFlagGateOnInput; }), WireFault::unknown_flags);
  EXPECT_EQ(fault_after([](auto& h) { h.id.flags |= kFlagChecksum; }), WireFault::bad_checksum);
  EXPECT_EQ(fault_after([](auto& h) { h.checksum = 1; }), WireFault::bad_checksum);
  EXPECT_EQ(fault_after([](auto& h) { h.id.stack = 1; }), WireFault::bad_stack);
  EXPECT_EQ(fault_after([](auto& h) { h.id.worker_incarnation = 3; }), WireFault::stale_incarnation);
  EXPECT_EQ(fault_after([](auto& h) { h.id.placement_epoch = 8; }), WireFault::stale_epoch);
  EXPECT_EQ(fault_after([](auto& h) { h.id.layer = 5; }), WireFault::bad_order);
  EXPECT_EQ(fault_after([](auto& h) { h.wire = 1; }), WireFault::bad_wire_dtype);
  EXPECT_EQ(fault_after([](auto& h) { h.num_tokens = 11; }), WireFault::too_many_rows);
  EXPECT_EQ(fault_after([](auto& h) { h.num_tokens = 7; }), WireFault::too_many_entries);
  EXPECT_EQ(fault_after([](auto& h) { h.experts_per_token = 6; }), WireFault::too_many_entries);
  EXPECT_EQ(fault_after([](auto& h) { h.experts_per_token = 0xffffffff; }), WireFault::too_many_entries);
  EXPECT_EQ(fault_after([](auto& h) { h.num_tokens = 0; }), WireFault::bad_size);
  EXPECT_EQ(fault_after([](auto& h) { h.experts_per_token = 0; }), WireFault::bad_size);
  EXPECT_EQ(fault_after([](auto& h) { h.num_layers = 0; }), WireFault::bad_size);
  EXPECT_EQ(fault_after([](auto& h) { h.num_layers = 2; }), WireFault::bad_size);
  EXPECT_EQ(fault_after([](auto& h) { h.num_layers = 4; }), WireFault::unknown_layer);
  EXPECT_EQ(fault_after([](auto& h) { h.num_layers = 0xffffffff; }), WireFault::unknown_layer);
  expected.rows_apart = false;
  EXPECT_EQ(fault_of(written()), WireFault::unknown_flags) << "who has no link";
}

TEST_F(StepLayoutTest, LayersAreChecked) {
  EXPECT_EQ(fault_with({{2, kRowElements}, {3, kRowElements}, {7, kRowElements}}), WireFault::unknown_layer);
  EXPECT_EQ(fault_with({{2, kRowElements}, {5, kRowElements}, {7, kRowElements}}), WireFault::bad_hidden);
  EXPECT_EQ(fault_with({{7, kRowElements}, {2, kRowElements}}), WireFault::bad_order);
  EXPECT_EQ(fault_with({{2, kRowElements}, {2, kRowElements}}), WireFault::bad_order);
}

TEST_F(StepLayoutTest, EveryTruncationAndExtensionIsRefused) {
  auto const message = written();
  for (std::size_t size = 0; size < message.size(); ++size)
    EXPECT_EQ(fault_of(message.first(size)), size < sizeof(StepHeader) ? WireFault::truncated : WireFault::bad_size);
  EXPECT_EQ(fault_of(buffer.span().first(message.size() + 1)), WireFault::bad_size);
  EXPECT_FALSE(is_step(message.first(3)));
}

TEST_F(StepLayoutTest, ASealedMessageShowsEveryChange) {
  id.flags |= kFlagChecksum;
  auto const message = written();
  seal(message);
  EXPECT_EQ(fault_of(message), WireFault::none);
  for (std::size_t i = sizeof(StepHeader); i < message.size(); ++i) {
    message[i] ^= std::byte{4};
    EXPECT_EQ(fault_of(message), WireFault::bad_checksum) << "byte " << i;
    message[i] ^= std::byte{4};
  }
}

TEST_F(StepLayoutTest, RandomBytesNeverPassAsSomethingOutOfBounds) {
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    auto const message = written();
    for (int flips = 0; flips < 3; ++flips) message[random() % message.size()] = static_cast<std::byte>(random());
    auto const parsed = parse_step(message, expected);
    auto const* step = std::get_if<StepRequest>(&parsed);
    if (!step) continue;
    ASSERT_LE(std::uint64_t{step->header.num_tokens} * step->header.experts_per_token, expected.limits.max_entries);
    ASSERT_LE(step->header.num_tokens, expected.limits.max_rows);
    for (StepLayer const& layer : step->layers) {
      auto const found = std::ranges::find(held, layer.layer, &HeldLayer::layer);
      ASSERT_TRUE(found != held.end() && found->hidden == layer.hidden);
    }
  }
}

TEST_F(StepLayoutTest, OffsetsOfALayer) {
  for (DType const wire : {DType::f32, DType::bf16})
    for (std::size_t const hidden : {1U, 7U, 64U, 4096U})
      for (std::size_t const tokens : {1U, 2U, 33U})
        for (std::size_t const k : {1U, 8U}) {
          StepLayout const layout(tokens, k, hidden, wire);
          EXPECT_EQ(layout.row_bytes, hidden * size_of(wire));
          EXPECT_EQ(layout.experts_offset % 64, 0U);
          EXPECT_GE(layout.experts_offset, tokens * layout.row_bytes);
          EXPECT_LT(layout.experts_offset, tokens * layout.row_bytes + 64);
          EXPECT_EQ(layout.out_bytes, layout.experts_offset + tokens * k * 4);
          EXPECT_EQ(layout.back_bytes, tokens * k * layout.row_bytes);
          EXPECT_EQ(layout.out_bytes,
                    most_step_out_bytes({.max_rows = tokens, .max_entries = tokens * k}, hidden, wire));
        }
}

}  // namespace
}  // namespace expertmesh
