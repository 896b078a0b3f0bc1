#include "coordinator/bench/load_generator.h"

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <limits>
#include <nlohmann/json.hpp>

#include "common/base/error.h"
#include "coordinator/bench/sse_reader.h"

namespace expertmesh {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::use_awaitable;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kReadBytes = std::size_t{16} << 10;
constexpr std::size_t kMaxErrorBytes = std::size_t{64} << 10;
constexpr std::chrono::milliseconds kProgressInterval{200};
constexpr std::chrono::seconds kConnectTimeout{30};

double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

http::request<http::string_body> make_request(http::verb verb, ServerAddress const& server, std::string const& target,
                                              std::string const& api_key) {
  http::request<http::string_body> request(verb, server.prefix + target, 11);
  request.set(http::field::host, server.host + ":" + server.port);
  request.set(http::field::user_agent, "expertmesh-bench");
  request.set(http::field::content_type, "application/json");
  if (!api_key.empty()) request.set(http::field::authorization, "Bearer " + api_key);
  return request;
}

// The chat API takes text: a short word for each id. How many tokens that is, the server says.
std::string words_of(std::vector<TokenId> const& ids) {
  static constexpr std::array<char const*, 16> kWords = {"the", "fox", "and", "king", "went", "to",  "a",   "wood",
                                                         "he",  "saw", "old", "tree", "with", "two", "red", "birds"};
  std::string text;
  for (TokenId id : ids) text += (text.empty() ? "" : " ") + std::string(kWords[static_cast<std::size_t>(id) % 16]);
  return text;
}

std::string body_of(LoadOptions const& options, PlannedRequest const& planned) {
  json body{{"model", options.model},
            {"max_tokens", planned.output_len},
            {"temperature", 0},
            {"stream", true},
            {"stream_options", {{"include_usage", true}}}};
  if (options.ignore_eos) body["ignore_eos"] = true;
  if (options.endpoint == Endpoint::chat) {
    body["messages"] = json::array({{{"role", "user"}, {"content", words_of(planned.prompt)}}});
  } else {
    body["prompt"] = planned.prompt;
  }
  return body.dump();
}

// "404: no such model" from an error answer of any form.
std::string error_text(unsigned status, std::string const& body) {
  std::string text = std::to_string(status);
  json const answer = json::parse(body, nullptr, false);
  if (answer.is_object() && answer.contains("error") && answer["error"].is_object())
    text += ": " + answer["error"].value("message", "");
  return text;
}

// One streamed answer as its client sees it.
class Answer {
 public:
  Answer(PlannedRequest const& planned, Clock::time_point sent) : planned_(planned), last_(sent), sent_(sent) {}

  // Whether the client still wants more.
  bool take(std::string_view data) {
    if (data == "[DONE]") {
      done_ = true;
      return true;
    }
    json const event = json::parse(data, nullptr, false);
    if (!event.is_object()) return fail("an event that is no JSON object");
    if (event.contains("error")) return fail("in the stream: " + event["error"].value("message", "error"));
    if (auto const usage = event.find("usage"); usage != event.end() && usage->is_object()) {
      has_usage_ = true;
      outcome_.prompt_tokens = usage->value("prompt_tokens", std::size_t{0});
      outcome_.output_tokens = usage->value("completion_tokens", std::size_t{0});
    }
    if (auto const choices = event.find("choices"); choices != event.end() && choices->is_array() && !choices->empty())
      take_piece(choices->front());
    return !planned_.disconnect_after || num_pieces_ < *planned_.disconnect_after;
  }

  bool fail(std::string why) {
    outcome_.failure = std::move(why);
    return false;
  }

  // The connection has ended, by whomever.
  RequestOutcome finish(bool left) {
    if (outcome_.failure.empty() && left) {
      outcome_.end = RequestOutcome::End::disconnected;
    } else if (outcome_.failure.empty() && !done_) {
      fail("the stream ended without [DONE]");
    } else if (outcome_.failure.empty() && !has_usage_) {
      fail("the stream has no usage");
    } else if (outcome_.failure.empty() && num_pieces_ == 0) {
      fail("the answer is empty");
    } else if (outcome_.failure.empty()) {
      outcome_.end = RequestOutcome::End::completed;
    }
    return std::move(outcome_);
  }

  [[nodiscard]] std::size_t num_pieces() const { return num_pieces_; }

 private:
  void take_piece(json const& choice) {
    // A chat answer begins with a piece that has only the role, and any may end with one that has only the reason.
    json const delta = choice.value("delta", json::object());
    std::string const text = choice.contains("text") ? choice.value("text", "") : delta.value("content", "");
    bool const ends = choice.contains("finish_reason") && !choice["finish_reason"].is_null();
    if (text.empty() && !(ends && num_pieces_ == 0)) return;
    auto const now = Clock::now();
    if (num_pieces_++ == 0)
      outcome_.ttft_s = seconds_between(sent_, now);
    else
      outcome_.inter_token_s.push_back(seconds_between(last_, now));
    outcome_.latency_s = seconds_between(sent_, now);
    last_ = now;
  }

  PlannedRequest const& planned_;
  Clock::time_point last_;
  Clock::time_point const sent_;
  RequestOutcome outcome_;
  std::size_t num_pieces_ = 0;
  bool done_ = false;
  bool has_usage_ = false;
};

asio::awaitable<tcp::resolver::results_type> resolve(ServerAddress const& server) {
  tcp::resolver resolver(co_await asio::this_coro::executor);
  co_return co_await resolver.async_resolve(server.host, server.port, use_awaitable);
}

class LoadRun {
 public:
  LoadRun(LoadOptions const& options, std::vector<PlannedRequest> const& workload,
          std::function<void(LoadProgressCounts const&)> const& on_progress)
      : options_(options), workload_(workload), on_progress_(on_progress) {
    result_.outcomes.resize(workload.size());
  }

  LoadResult run() {
    asio::co_spawn(io_, send_all(), asio::detached);
    asio::co_spawn(io_, report(), asio::detached);
    io_.run();
    on_progress_(counts_);
    return std::move(result_);
  }

 private:
  [[nodiscard]] bool all_ended() const {
    return counts_.completed + counts_.failed + counts_.disconnected == workload_.size();
  }

  asio::awaitable<void> send_all() {
    error_code error;
    try {
      endpoints_ = co_await resolve(options_.server);
    } catch (boost::system::system_error const& failed) {
      unreachable_ = failed.code().message();
    }
    auto const begin = Clock::now();
    for (std::size_t i = 0; i < workload_.size(); ++i) {
      asio::steady_timer arrival(io_, begin + std::chrono::duration_cast<Clock::duration>(
                                                  std::chrono::duration<double>(workload_[i].arrival_s)));
      co_await arrival.async_wait(use_awaitable);
      while (options_.max_concurrency != 0 && counts_.running >= options_.max_concurrency) {
        place_free_.expires_at(Clock::time_point::max());
        co_await place_free_.async_wait(asio::redirect_error(use_awaitable, error));  // cancelled by an end
      }
      result_.max_concurrent = std::max(result_.max_concurrent, ++counts_.running);
      asio::co_spawn(io_, send(i, begin), asio::detached);
    }
  }

  asio::awaitable<void> send(std::size_t i, Clock::time_point begin) {
    RequestOutcome outcome;
    try {
      outcome = co_await exchange(workload_[i]);
    } catch (boost::system::system_error const& error) {
      outcome.failure = error.code().message();
    } catch (json::exception const& error) {
      outcome.failure = std::string("an event of another form: ") + error.what();
    }
    --counts_.running;
    switch (outcome.end) {
      case RequestOutcome::End::completed:
        ++counts_.completed;
        break;
      case RequestOutcome::End::failed:
        ++counts_.failed;
        break;
      case RequestOutcome::End::disconnected:
        ++counts_.disconnected;
        break;
    }
    result_.duration_s = std::max(result_.duration_s, seconds_between(begin, Clock::now()));
    result_.outcomes[i] = std::move(outcome);
    place_free_.cancel();
    if (all_ended()) progress_due_.cancel();
  }

  asio::awaitable<RequestOutcome> exchange(PlannedRequest const& planned) {
    auto request = make_request(http::verb::post, options_.server,
                                options_.endpoint == Endpoint::chat ? "/v1/chat/completions" : "/v1/completions",
                                options_.api_key);
    request.body() = body_of(options_, planned);
    request.prepare_payload();

    Answer answer(planned, Clock::now());
    if (!unreachable_.empty()) {
      answer.fail(unreachable_);
      co_return answer.finish(false);
    }
    beast::tcp_stream stream(io_);
    stream.expires_after(kConnectTimeout);
    co_await stream.async_connect(endpoints_, use_awaitable);
    stream.socket().set_option(tcp::no_delay(true));
    stream.expires_after(std::chrono::seconds(options_.timeout_s));
    co_await http::async_write(stream, request, use_awaitable);

    beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(std::numeric_limits<std::uint64_t>::max());
    co_await http::async_read_header(stream, buffer, parser, use_awaitable);
    unsigned const status = parser.get().result_int();
    std::string error_body;
    SseReader events;
    bool wanted = true;
    std::array<char, kReadBytes> bytes;  // NOLINT(cppcoreguidelines-pro-type-member-init): written before it is read
    while (!parser.is_done() && wanted) {
      parser.get().body().data = bytes.data();
      parser.get().body().size = bytes.size();
      stream.expires_after(std::chrono::seconds(options_.timeout_s));
      error_code error;
      co_await http::async_read_some(stream, buffer, parser, asio::redirect_error(use_awaitable, error));
      if (error && error != http::error::need_buffer) throw boost::system::system_error(error);
      std::string_view const read(bytes.data(), bytes.size() - parser.get().body().size);
      std::size_t const before = answer.num_pieces();
      if (status != 200)
        error_body.append(read.substr(0, kMaxErrorBytes - std::min(kMaxErrorBytes, error_body.size())));
      else
        events.feed(read, [&](std::string_view data) { wanted = wanted && answer.take(data); });
      counts_.pieces += answer.num_pieces() - before;
    }
    if (status != 200) answer.fail(error_text(status, error_body));
    co_return answer.finish(!wanted);
  }

  asio::awaitable<void> report() {
    error_code error;
    while (!all_ended()) {
      progress_due_.expires_after(kProgressInterval);
      co_await progress_due_.async_wait(asio::redirect_error(use_awaitable, error));
      on_progress_(counts_);
    }
  }

  LoadOptions const& options_;
  std::vector<PlannedRequest> const& workload_;
  std::function<void(LoadProgressCounts const&)> const& on_progress_;
  asio::io_context io_{1};
  asio::steady_timer place_free_{io_};
  asio::steady_timer progress_due_{io_};
  tcp::resolver::results_type endpoints_;
  std::string unreachable_;  // why the server's name leads nowhere
  LoadProgressCounts counts_;
  LoadResult result_;
};

}  // namespace

ServerAddress parse_base_url(std::string const& url) {
  static std::string const kScheme = "http://";
  auto const refuse = [&](char const* why) -> ModelError { return ModelError("--base-url " + url + ": " + why); };
  if (!url.starts_with(kScheme)) throw refuse("expected http://HOST[:PORT] (there is no TLS here)");
  std::string const rest = url.substr(kScheme.size());
  std::size_t const slash = std::min(rest.find('/'), rest.size());
  std::string const authority = rest.substr(0, slash);
  ServerAddress server{.host = {}, .port = "80", .prefix = rest.substr(slash)};
  while (server.prefix.ends_with('/')) server.prefix.pop_back();
  if (server.prefix.ends_with("/v1")) server.prefix.resize(server.prefix.size() - 3);
  std::size_t const bracket = authority.starts_with('[') ? authority.find(']') : 0;  // [IPv6]
  if (bracket == std::string::npos) throw refuse("a [ without a ]");
  std::size_t const colon = authority.find(':', bracket);
  server.host = bracket == 0 ? authority.substr(0, colon) : authority.substr(1, bracket - 1);
  if (colon != std::string::npos) server.port = authority.substr(colon + 1);
  if (server.host.empty() || server.port.empty() || server.port.find_first_not_of("0123456789") != std::string::npos)
    throw refuse("expected http://HOST[:PORT]");
  return server;
}

std::string ask_for_model(ServerAddress const& server, std::string const& api_key) {
  std::string const where = server.host + ":" + server.port;
  try {
    asio::io_context io;
    beast::tcp_stream stream(io);
    stream.expires_after(kConnectTimeout);
    stream.connect(tcp::resolver(io).resolve(server.host, server.port));
    auto const request = make_request(http::verb::get, server, "/v1/models", api_key);
    http::write(stream, request);
    beast::flat_buffer buffer;
    http::response<http::string_body> response;
    http::read(stream, buffer, response);
    if (response.result() != http::status::ok)
      throw NetworkError("GET /v1/models", static_cast<int>(response.result_int()),
                         error_text(response.result_int(), response.body()), where);
    return json::parse(response.body()).at("data").at(0).at("id").get<std::string>();
  } catch (boost::system::system_error const& error) {
    throw NetworkError("GET /v1/models", error.code().value(), error.code().message(), where);
  } catch (json::exception const& error) {
    throw NetworkError("GET /v1/models", 0, std::string("no list of models: ") + error.what(), where);
  }
}

LoadResult run_load(LoadOptions const& options, std::vector<PlannedRequest> const& workload,
                    std::function<void(LoadProgressCounts const&)> const& on_progress) {
  return LoadRun(options, workload, on_progress).run();
}

}  // namespace expertmesh
