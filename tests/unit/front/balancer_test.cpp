#include "coordinator/front/balancer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "coordinator/front/prompt_summary.h"

namespace expertmesh {
namespace {

PromptSummary prompt(std::size_t tokens, std::vector<std::uint64_t> prefixes = {}) {
  return {.tokens = tokens, .prefixes = std::move(prefixes)};
}

class BalancerTest : public testing::Test {
 protected:
  std::size_t choose(PromptSummary const& summary, std::vector<bool> const& eligible = {true, true, true}) {
    auto const choice = balancer_.choose(summary, eligible);
    EXPECT_TRUE(choice);
    known_blocks_ = choice ? choice->known_blocks : 0;
    return choice ? choice->backend : 99;
  }
  Balancer balancer_{{.num_backends = 3, .margin_tokens = 100, .max_prefixes = 8}};
  std::size_t known_blocks_ = 0;
};

TEST_F(BalancerTest, TheOneWithTheLeastTokensGetsIt) {
  EXPECT_EQ(choose(prompt(50)), 0U);
  EXPECT_EQ(choose(prompt(10)), 1U);
  EXPECT_EQ(choose(prompt(20)), 2U);
  EXPECT_EQ(choose(prompt(15)), 1U) << "10 is less than 20 and 50";
  EXPECT_EQ(choose(prompt(1)), 2U) << "20 is less than 25";
  balancer_.finish(0, 50);
  EXPECT_EQ(balancer_.outstanding_tokens(0), 0U);
  EXPECT_EQ(choose(prompt(1)), 0U);
  EXPECT_EQ(balancer_.outstanding_tokens(1), 25U);
  EXPECT_EQ(balancer_.outstanding_tokens(2), 21U);
}

TEST_F(BalancerTest, OneAfterTheOtherGoesAround) {
  std::vector<std::size_t> order;
  for (int i = 0; i < 6; ++i) {
    order.push_back(choose(prompt(7)));
    balancer_.finish(order.back(), 7);
  }
  EXPECT_EQ(order, (std::vector<std::size_t>{0, 1, 2, 0, 1, 2}));
}

TEST_F(BalancerTest, WhoKnowsTheBeginningGetsItWithinTheMargin) {
  EXPECT_EQ(choose(prompt(100, {1, 2, 3})), 0U);
  EXPECT_EQ(known_blocks_, 0U);
  EXPECT_EQ(choose(prompt(1, {1, 2, 9})), 0U) << "100 more than the least";
  EXPECT_EQ(known_blocks_, 2U);
  EXPECT_EQ(choose(prompt(1, {1, 2, 9, 10})), 1U) << "101 more";
  EXPECT_EQ(known_blocks_, 0U);
  balancer_.finish(0, 100);
  EXPECT_EQ(choose(prompt(1, {1, 2, 3})), 0U) << "of the longest known beginning, not of a shorter one";
  EXPECT_EQ(known_blocks_, 3U);
  EXPECT_EQ(choose(prompt(1, {1, 2, 9, 10, 11})), 1U) << "who had it last";
  EXPECT_EQ(known_blocks_, 4U);
}

TEST_F(BalancerTest, WhoIsNotEligibleGetsNothing) {
  EXPECT_EQ(choose(prompt(1, {1})), 0U);
  EXPECT_EQ(choose(prompt(1, {1}), {false, true, true}), 1U) << "although the first knows it";
  EXPECT_EQ(choose(prompt(5), {false, true, false}), 1U);
  EXPECT_EQ(choose(prompt(5), {false, true, true}), 2U);
  EXPECT_FALSE(balancer_.choose(prompt(1), {false, false, false}));
}

TEST_F(BalancerTest, WhatIsRememberedIsBounded) {
  std::size_t const first = choose(prompt(0, {1, 2}));
  for (std::uint64_t i = 10; i < 16; ++i) choose(prompt(0, {i}));
  EXPECT_EQ(balancer_.num_prefixes(), 8U);
  EXPECT_EQ(choose(prompt(0, {1, 99})), first) << "used again, so the last to go";
  EXPECT_EQ(known_blocks_, 1U);
  EXPECT_EQ(balancer_.num_prefixes(), 8U);
  choose(prompt(0, {1, 2}));
  EXPECT_EQ(known_blocks_, 1U) << "the longer one was the least recently used";
  std::vector<std::uint64_t> many;
  for (std::uint64_t i = 0; i < 50; ++i) many.push_back(1000 + i);
  choose(prompt(0, many));
  EXPECT_EQ(balancer_.num_prefixes(), 8U);
  choose(prompt(0, {1000, 1}));
  EXPECT_EQ(known_blocks_, 1U) << "of a long one the beginning is kept";
}

TEST_F(BalancerTest, WhoStartsAnewKnowsNothing) {
  EXPECT_EQ(choose(prompt(3, {1, 2})), 0U);
  EXPECT_EQ(choose(prompt(5, {7})), 1U);
  balancer_.forget(0);
  EXPECT_EQ(balancer_.num_prefixes(), 1U);
  EXPECT_EQ(choose(prompt(0, {1, 2})), 2U);
  EXPECT_EQ(choose(prompt(0, {7})), 1U);
  EXPECT_EQ(balancer_.outstanding_tokens(0), 3U) << "they are taken off when their answers end";
}

TEST(PromptSummaryTest, CountsTokensOfPromptAndAnswer) {
  EXPECT_EQ(summarise(R"({"prompt": "12345678", "max_tokens": 7})").tokens, 2U + 1 + 7);
  EXPECT_EQ(summarise(R"({"prompt": [1, 2, 3], "max_tokens": 7, "n": 2})").tokens, 3U + 2 * 7);
  EXPECT_EQ(summarise(R"({"prompt": [[1, 2], [3]], "max_tokens": 1})").tokens, 3U + 1);
  EXPECT_EQ(summarise(R"({"prompt": [1]})").tokens, 1U + 16) << "what the coordinator does";
  EXPECT_EQ(summarise(R"({"messages": [], "max_tokens": 9, "max_completion_tokens": 5})").tokens, 5U);
  EXPECT_GT(summarise(R"({"messages": []})").tokens, 16U) << "as much as fits: a guess";
  EXPECT_GT(summarise(R"({"messages": [], "tools": ["12345678"], "max_tokens": 5})").tokens, 5U);
  EXPECT_LT(summarise(R"({"prompt": [1], "max_tokens": 18446744073709551615, "n": 1e300})").tokens, 1U << 30);
  for (char const* body : {"", "[", "[]", "1234567812345678", "{\"prompt\": 12}"})
    EXPECT_TRUE(summarise(body).prefixes.empty()) << body;
}

TEST(PromptSummaryTest, BeginningsAreEqualAsFarAsTheTextsAre) {
  auto const of = [](std::string const& text) { return summarise(R"({"prompt": ")" + text + R"("})").prefixes; };
  std::string const block(kPrefixBlockBytes, 'a');
  auto const one = of(block + block + "b");
  auto const other = of(block + std::string(kPrefixBlockBytes, 'c') + block);
  ASSERT_EQ(one.size(), 2U);
  ASSERT_EQ(other.size(), 3U);
  EXPECT_EQ(one[0], other[0]);
  EXPECT_NE(one[1], other[1]);
  EXPECT_NE(one[0], one[1]);
  EXPECT_TRUE(of(block.substr(1)).empty());
  EXPECT_EQ(of(std::string((kMaxPrefixBlocks + 5) * kPrefixBlockBytes, 'a')).size(), kMaxPrefixBlocks);

  auto const chat = [](std::string const& more) {
    return summarise(R"({"messages": [{"role": "user", "content": ")" + std::string(2 * kPrefixBlockBytes, 'x') +
                     R"("})" + more + "]}")
        .prefixes;
  };
  auto const turn = chat("");
  auto const next = chat(R"(, {"role": "assistant", "content": ")" + block + "\"}");
  ASSERT_GE(turn.size(), 2U);
  ASSERT_GT(next.size(), turn.size());
  EXPECT_TRUE(std::equal(turn.begin(), turn.end(), next.begin())) << "the next turn of a conversation";
}

}  // namespace
}  // namespace expertmesh
