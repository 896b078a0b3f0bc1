// Server-sent events out of a byte stream that may be cut anywhere.
#pragma once
#include <string>
#include <string_view>

namespace expertmesh {

class SseReader {
 public:
  // Calls on_data(std::string_view) with the data of each event that ends in these bytes; other fields are passed over.
  template <class OnData>
  void feed(std::string_view bytes, OnData on_data) {
    for (char c : bytes) {
      if (c != '\n') {
        line_ += c;
        continue;
      }
      if (line_.ends_with('\r')) line_.pop_back();
      if (line_.starts_with("data:")) {
        if (has_data_) data_ += '\n';
        data_ += line_.substr(line_.starts_with("data: ") ? 6 : 5);
        has_data_ = true;
      } else if (line_.empty() && has_data_) {
        on_data(std::string_view(data_));
        data_.clear();
        has_data_ = false;
      }
      line_.clear();
    }
  }

 private:
  std::string line_;  // not yet ended
  std::string data_;  // of the event under way
  bool has_data_ = false;
};

}  // namespace expertmesh
