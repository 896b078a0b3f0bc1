// The outside world's failures as typed exceptions, and a Result for what is a client's fault or lack of capacity.
// Four kinds of error, four ways: our bug -> EM_CHECK; client -> Result with a 4xx ApiError; capacity -> Result with
// 429/503; outside world -> an exception of this file.
#pragma once
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include "common/base/check.h"

namespace expertmesh {

// A call to the world outside this process failed. what() is one line: "<call>: <text> (<code>) [<peer>]".
class OutsideError : public std::runtime_error {
 public:
  OutsideError(std::string call_name, int error_code, std::string const& text, std::string peer_name);
  std::string const call;
  int const code;
  std::string const peer;  // file, address or worker the call was about
};

class FileError : public OutsideError {
 public:
  using OutsideError::OutsideError;
};

class MpiError : public OutsideError {
 public:
  using OutsideError::OutsideError;
};

class DeviceError : public OutsideError {
 public:
  using OutsideError::OutsideError;
};

class NetworkError : public OutsideError {
 public:
  using OutsideError::OutsideError;
};

// The model directory (or another file the user gave) is not what it should be. what() is one line that names file and
// tensor or field. The programs print it and exit with code 2.
class ModelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What a client is told: {"error":{message,type,param,code}} with an HTTP status.
struct ApiError {
  int status = 400;                            // HTTP status
  std::string message;                         // names the field and what is wrong with it
  std::string type = "invalid_request_error";  // OpenAI's error types
  std::optional<std::string> param;            // the offending field
  std::optional<std::string> code;             // machine-readable, e.g. "model_not_found"
  std::optional<int> retry_after_s;            // Retry-After header of 429 and 503
};

// A value or the reason there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(ApiError error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() {
    EM_CHECK(ok(), error().message);
    return std::get<0>(state_);
  }
  T const& value() const {
    EM_CHECK(ok(), error().message);
    return std::get<0>(state_);
  }
  ApiError& error() { return std::get<1>(state_); }
  ApiError const& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, ApiError> state_;
};

}  // namespace expertmesh
