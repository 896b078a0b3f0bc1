// What is made of the answers: the events of a cut stream, the books of a load test, addresses.
#include "coordinator/bench/serve_report.h"

#include <gtest/gtest.h>

#include "common/base/error.h"
#include "coordinator/bench/sse_reader.h"

namespace expertmesh {
namespace {

TEST(SseReader, EventsAreWholeWhereverTheBytesAreCut) {
  std::string const stream =
      ": comment\r\n\r\ndata: {\"a\":1}\n\nevent: x\ndata:two\ndata: lines\r\n\r\ndata: [DONE]\n\n";
  std::vector<std::string> const expected{"{\"a\":1}", "two\nlines", "[DONE]"};
  for (std::size_t size = 1; size <= stream.size(); ++size) {
    SseReader reader;
    std::vector<std::string> seen;
    for (std::size_t i = 0; i < stream.size(); i += size)
      reader.feed(std::string_view(stream).substr(i, size), [&](std::string_view data) { seen.emplace_back(data); });
    EXPECT_EQ(seen, expected) << "cut every " << size << " bytes";
  }
}

TEST(ServeFigures, EveryRequestIsCountedOnceAndOnlyCompletedOnesAreMeasured) {
  using End = RequestOutcome::End;
  LoadResult result{.outcomes = {{.end = End::completed,
                                  .failure = {},
                                  .prompt_tokens = 5,
                                  .output_tokens = 3,
                                  .ttft_s = 1,
                                  .latency_s = 5,
                                  .inter_token_s = {1, 3}},
                                 {.end = End::completed,
                                  .failure = {},
                                  .prompt_tokens = 7,
                                  .output_tokens = 1,
                                  .ttft_s = 3,
                                  .latency_s = 3,
                                  .inter_token_s = {}},
                                 {.end = End::failed, .failure = "500: no", .inter_token_s = {}},
                                 {.end = End::failed, .failure = "500: no", .inter_token_s = {}},
                                 {.end = End::disconnected, .failure = {}, .ttft_s = 100, .inter_token_s = {100}}},
                    .duration_s = 8,
                    .max_concurrent = 4};
  ServeFigures const f = figures_of(result);
  EXPECT_EQ(f.completed, 2U);
  EXPECT_EQ(f.failed, 2U);
  EXPECT_EQ(f.disconnected, 1U);
  EXPECT_EQ(f.errors.at("500: no"), 2U);
  EXPECT_EQ(f.total_input_tokens, 12U);
  EXPECT_EQ(f.total_output_tokens, 4U);
  EXPECT_DOUBLE_EQ(f.ttft_s.mean, 2);
  EXPECT_DOUBLE_EQ(f.tpot_s.mean, 2);  // (5 - 1) / 2; an answer of one token has none
  EXPECT_DOUBLE_EQ(f.itl_s.mean, 2);
  EXPECT_DOUBLE_EQ(f.e2el_s.mean, 4);
}

TEST(BaseUrl, IsTakenApart) {
  auto const expect = [](std::string const& url, std::string const& host, std::string const& port,
                         std::string const& prefix) {
    ServerAddress const server = parse_base_url(url);
    EXPECT_EQ(server.host, host) << url;
    EXPECT_EQ(server.port, port) << url;
    EXPECT_EQ(server.prefix, prefix) << url;
  };
  expect("http://127.0.0.1:8000", "127.0.0.1", "8000", "");
  expect("http://host/", "host", "80", "");
  expect("http://host:1/v1/", "host", "1", "");
  expect("http://host:1/a/v1", "host", "1", "/a");
  expect("http://[::1]:9/x", "::1", "9", "/x");
  for (char const* bad :
       {"https://host", "host:1", "http://", "http://:1", "http://host:", "http://host:x", "http://[::1"})
    EXPECT_THROW(parse_base_url(bad), ModelError) << bad;
}

}  // namespace
}  // namespace expertmesh
