// Runs a generated header's functions on raw binary tensors: tests/targets/test_integration.py compares what comes out.
//
//   driver encode H W RGB FOLDER                    encoder_inputs, one FOLDER/<name>.bin each
//   driver decode H W PROMPTS MATRIX MASK FOLDER    decoder_inputs; MATRIX and MASK may be "-"
//   driver upscale H W LOGITS FOLDER                upscaled.bin, thresholded.bin, stability.bin
//   driver best OUTPUTS SCORES                      prints the token chosen
//   driver segment H W RGB REGIONS FOLDER           segmenter_input of each region; with outputs there, the class map
//
// PROMPTS has a line per word group: "p x y label", "b x0 y0 x1 y1"; "next" starts another prompt.

#include "edgesam_deploy.hpp"

#include <iostream>
#include <sstream>

namespace host = edgesam_deploy;

namespace {

template <typename T>
std::vector<T> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

template <typename T>
void write(const std::string& path, const std::vector<T>& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

#ifdef SEGMENTER

int run(const std::vector<std::string>& words) {
  const host::Size size{std::stoi(words[1]), std::stoi(words[2])};
  const std::vector<std::uint8_t> rgb = read<std::uint8_t>(words[3]);
  const std::vector<host::Region> regions =
      words[4] == "-" ? host::regions(size) : host::regions(size, std::stoi(words[4]));
  host::ClassMap map(size);
  for (std::size_t i = 0; i < regions.size(); ++i) {
    const std::string name = words[5] + "/region" + std::to_string(i);
    host::Tensor input = host::segmenter_input({rgb.data(), size}, regions[i]);
    if (input.bytes.empty()) {
      write(name + ".bin", input.floats);
    } else {
      write(name + ".bin", input.bytes);
    }
    if constexpr (host::gives_class_map) {
      const std::vector<std::int32_t> found = read<std::int32_t>(name + ".out");
      if (!found.empty()) host::put_class_map(map, regions[i], found.data());
    } else {
      const std::vector<float> logits = read<float>(name + ".out");
      if (!logits.empty()) host::put_logits(map, regions[i], logits.data());
    }
  }
  write(words[5] + "/classes.bin", map.classes);
  write(words[5] + "/confidence.bin", map.confidence);
  std::cout << regions.size() << '\n';
  return 0;
}

#else

void write(const std::string& folder, const host::Tensor& tensor) {
  const std::string path = folder + "/" + tensor.name + ".bin";
  if (tensor.bytes.empty()) {
    write(path, tensor.floats);
  } else {
    write(path, tensor.bytes);
  }
  std::cout << tensor.name;
  for (const std::int64_t side : tensor.shape) std::cout << ' ' << side;
  std::cout << '\n';
}

std::vector<host::Prompt> read_prompts(const std::string& path) {
  std::vector<host::Prompt> prompts(1);
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string kind, word;
    words >> kind;
    std::vector<double> numbers;
    while (words >> word) numbers.push_back(std::stod(word));
    if (kind == "next") prompts.emplace_back();
    if (kind == "p") prompts.back().points.push_back({numbers[0], numbers[1], static_cast<int>(numbers[2])});
    if (kind == "b") prompts.back().box = host::Box{numbers[0], numbers[1], numbers[2], numbers[3]};
  }
  return prompts;
}

int run(const std::vector<std::string>& words) {
  const std::string& command = words[0];
  if (command == "best") {
    const std::vector<float> scores = read<float>(words[2]);
    std::cout << host::best(scores.data(), host::offered(std::stoi(words[1]))) << '\n';
    return 0;
  }
  const host::Size size{std::stoi(words[1]), std::stoi(words[2])};
  if (command == "encode") {
    const std::vector<std::uint8_t> rgb = read<std::uint8_t>(words[3]);
    const host::Picture picture{rgb.empty() ? nullptr : rgb.data(), size};
    for (const host::Tensor& tensor : host::encoder_inputs(picture)) write(words[4], tensor);
  } else if (command == "decode") {
    const std::vector<float> matrix = words[4] == "-" ? std::vector<float>{} : host::read_position_matrix(words[4]);
    const std::vector<float> mask = words[5] == "-" ? std::vector<float>{} : read<float>(words[5]);
    for (const host::Tensor& tensor : host::decoder_inputs(read_prompts(words[3]), size, matrix, mask)) {
      write(words[6], tensor);
    }
  } else {
    const std::vector<float> logits = read<float>(words[3]);
    const std::vector<float> large = host::upscaled(logits.data(), size);
    write(words[4] + "/upscaled.bin", large);
    write(words[4] + "/thresholded.bin", host::thresholded(large));
    write(words[4] + "/stability.bin", std::vector<float>{host::stability_score(logits.data())});
  }
  return 0;
}

#endif

}  // namespace

int main(int count, char** words) {
  try {
    return run(std::vector<std::string>(words + 1, words + count));
  } catch (const std::invalid_argument& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
