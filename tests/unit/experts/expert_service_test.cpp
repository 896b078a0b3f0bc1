#include "common/experts/expert_service.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "common/kernels/grouped_ffn.h"
#include "common/kernels/rows.h"
#include "tests/support/tiny_experts.h"

namespace expertmesh {
namespace {

using test::MadeUpWeights;
using test::tiny_model;

constexpr std::size_t kExperts = 6;
constexpr std::size_t kMaxRows = 40;
constexpr std::size_t kMaxMessages = 3;

using Entries = std::vector<DispatchEntry>;

struct Message {
  AlignedBuffer<std::byte> request;
  AlignedBuffer<std::byte> answer;
  std::size_t bytes = 0;
  std::size_t layer_index = 0;
  Entries entries;
};

class ExpertServiceTest : public ::testing::TestWithParam<DType> {
 protected:
  std::size_t row_bytes() const { return layout.row_bytes(); }

  Message make(std::size_t layer_index, std::size_t num_rows, Entries entries, std::uint32_t attempt = 1) {
    Message m;
    m.layer_index = layer_index;
    m.request = AlignedBuffer<std::byte>(service.max_request_bytes());
    m.answer = AlignedBuffer<std::byte>(service.max_answer_bytes());
    ExchangeId const id{
        .worker_incarnation = 2, .placement_epoch = 3, .layer = model.layers[layer_index].layer, .attempt = attempt};
    RequestWriter request = layout.write_request(m.request.span(), id, num_rows, entries.size());
    std::ranges::copy(entries, request.entries.begin());
    for (std::size_t r = 0; r < num_rows; ++r) {
      auto const values = test::random_floats(random, layout.hidden());
      to_wire(exec, MatrixView<float const>(values.data(), 1, values.size()), GetParam(), request.row(r));
    }
    m.bytes = request.bytes;
    m.entries = std::move(entries);
    return m;
  }

  std::vector<ServiceCall> serve(std::vector<Message*> const& messages) {
    std::vector<ServiceCall> calls;
    for (Message* m : messages) {
      ServiceCall call;
      call.request = std::span<std::byte const>(m->request.span()).first(m->bytes);
      call.answer = m->answer.span();
      calls.push_back(call);
    }
    service.serve(calls, batch);
    return calls;
  }

  // Each answer row is what the expert alone makes of the request's row alone.
  void expect_right(Message const& m, ServiceCall const& call) {
    ASSERT_EQ(call.error.fault, WireFault::none) << describe(call.error);
    ASSERT_EQ(call.answer_bytes, layout.answer_bytes(m.entries.size()));
    std::vector<std::byte> expected(row_bytes());
    for (std::size_t i = 0; i < m.entries.size(); ++i) {
      FfnWeights const* expert = &store.expert(m.layer_index, m.entries[i].local_expert);
      std::array<std::size_t, 2> const offsets{0, 1};
      std::byte const* in =
          m.request.data() + layout.request_rows_offset(m.entries.size()) + m.entries[i].row * row_bytes();
      std::byte* out = expected.data();
      grouped_ffn(exec,
                  {.groups = {&expert, 1}, .offsets = offsets, .in = {&in, 1}, .out = {&out, 1}, .wire = GetParam()});
      EXPECT_EQ(
          std::memcmp(m.answer.data() + layout.answer_rows_offset() + i * row_bytes(), expected.data(), row_bytes()), 0)
          << "entry " << i;
    }
  }

  std::mt19937 random{7};
  ExpertModelSpec model = tiny_model(kExperts, GetParam());
  MadeUpWeights source;
  ThreadPool pool{2};
  DispatchLimits limits = DispatchLimits::of(kMaxRows, kExperts, kExperts);
  DispatchLayout layout{model.layers[0].hidden, GetParam()};
  ExpertStore store{model, all_experts(model), source, pool, [](std::size_t, std::size_t) {}};
  // Room for 7 rows only: calls are run in parts that cut through groups.
  Exec exec{Isa::scalar, pool, {.max_rows = 7, .max_columns = 24}};
  ExpertService service{
      store, exec, {.incarnation = Incarnation(2), .epoch = PlacementEpoch(3), .wire = GetParam(), .limits = limits}};
  ServiceBatch batch =
      service.make_batch({.max_requests = kMaxMessages, .max_entries = kMaxMessages * limits.max_entries});
};

TEST_P(ExpertServiceTest, AnyRoutingGivesEachRowItsExpert) {
  Entries all_to_one;
  Entries to_all;  // K = E
  Entries one_row_many_times;
  for (std::uint32_t r = 0; r < 20; ++r) {
    all_to_one.push_back({r, 4});
    one_row_many_times.push_back({3, r % 2});
    for (std::uint32_t e = 0; e < kExperts; ++e) to_all.push_back({r, (e + r) % static_cast<std::uint32_t>(kExperts)});
  }
  Entries random_ones;
  for (int i = 0; i < 61; ++i)
    random_ones.push_back({static_cast<std::uint32_t>(random() % 13), static_cast<std::uint32_t>(random() % kExperts)});
  for (Entries const& entries : {Entries{}, Entries{{0, 5}}, all_to_one, to_all, one_row_many_times, random_ones})
    for (std::size_t layer_index : {0U, 1U}) {
      Message m = make(layer_index, 20, entries);
      expect_right(m, serve({&m})[0]);
    }
}

TEST_P(ExpertServiceTest, MessagesThatAreThereTogetherAreServedTogether) {
  Message a = make(0, 3, {{0, 1}, {1, 1}, {2, 5}}, 1);
  Message b = make(1, 2, {{0, 1}, {1, 0}}, 2);
  Message c = make(0, 4, {{3, 5}, {2, 1}, {0, 0}, {0, 1}}, 3);
  auto const calls = serve({&a, &b, &c});
  expect_right(a, calls[0]);
  expect_right(b, calls[1]);
  expect_right(c, calls[2]);
  EXPECT_EQ(calls[2].attempt, 3U);
  EXPECT_EQ(batch.num_requests(), 3U);
  EXPECT_EQ(batch.num_groups(), 5U) << "of layer 0 experts 0, 1 and 5, of layer 1 experts 0 and 1";
}

// Two placements of different coordinators: the same expert has another number in each.
TEST_P(ExpertServiceTest, MessagesOfSeveralPlacementsMeetInTheExpertsThatTheyShare) {
  SharedExperts shared;
  ExpertStore const all(
      model, all_experts(model), source, pool, [](std::size_t, std::size_t) {}, &shared);
  ExpertStore const few(
      model, {{1, 4}, {4}}, source, pool, [](std::size_t, std::size_t) {}, &shared);
  auto const of = [&](ExpertStore const& held, std::uint32_t epoch) {
    return ExpertService(
        held, exec,
        {.incarnation = Incarnation(2), .epoch = PlacementEpoch(epoch), .wire = GetParam(), .limits = limits});
  };
  ExpertService first = of(all, 3);
  ExpertService second = of(few, 3);
  Message a = make(0, 3, {{0, 1}, {1, 4}, {2, 5}}, 1);  // layer 0: experts 1, 4, 5
  Message b = make(0, 2, {{0, 0}, {1, 1}, {1, 0}}, 1);  // layer 0: experts 1, 4
  Message c = make(1, 2, {{0, 0}, {1, 0}}, 2);          // layer 1: expert 4
  std::vector<ServiceCall> calls;
  for (Message* m : {&a, &b, &c}) {
    calls.emplace_back().request = std::span<std::byte const>(m->request.span()).first(m->bytes);
    calls.back().answer = m->answer.span();
  }
  batch.clear();
  first.admit(calls[0], batch);
  second.admit(calls[1], batch);
  second.admit(calls[2], batch);
  batch.run();
  for (ServiceCall const& call : calls) ExpertService::finish(call, batch);
  EXPECT_EQ(batch.num_groups(), 4U) << "of layer 0 experts 1, 4 and 5, of layer 1 expert 4";
  expect_right(a, calls[0]);
  for (DispatchEntry& entry : b.entries) entry.local_expert = entry.local_expert == 0 ? 1 : 4;
  for (DispatchEntry& entry : c.entries) entry.local_expert = 4;
  expect_right(b, calls[1]);
  expect_right(c, calls[2]);
}

TEST_P(ExpertServiceTest, ABadMessageIsRefusedAndItsNeighboursAreServed) {
  Message good = make(0, 2, {{0, 1}, {1, 2}}, 1);
  Message bad = make(0, 2, {{0, 1}, {1, 6}}, 2);
  Message also_good = make(1, 1, {{0, 3}}, 3);
  auto const calls = serve({&good, &bad, &also_good});
  expect_right(good, calls[0]);
  expect_right(also_good, calls[2]);
  EXPECT_EQ(calls[1].error.fault, WireFault::bad_expert_index);
  EXPECT_EQ(calls[1].attempt, 2U);
  ExchangeId const id{.worker_incarnation = 2, .placement_epoch = 3, .layer = 1, .attempt = 2};
  auto const parsed =
      parse_answer(std::span<std::byte const>(bad.answer.span()).first(calls[1].answer_bytes), layout, id, 2);
  EXPECT_EQ(std::get<WireError>(parsed).fault, WireFault::bad_expert_index);
}

TEST_P(ExpertServiceTest, GarbageHasNoAnswer) {
  Message m = make(0, 1, {{0, 0}});
  m.request[0] = std::byte{0};
  auto const calls = serve({&m});
  EXPECT_EQ(calls[0].error.fault, WireFault::bad_magic);
  EXPECT_EQ(calls[0].answer_bytes, 0U);
  m.bytes = 0;
  EXPECT_EQ(serve({&m})[0].error.fault, WireFault::truncated);
}

INSTANTIATE_TEST_SUITE_P(WireDtypes, ExpertServiceTest, ::testing::Values(DType::f32, DType::bf16),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

}  // namespace
}  // namespace expertmesh
