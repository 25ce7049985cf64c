// The driver's words for promptable models.

import Foundation

func readPrompts(_ path: String) throws -> [Prompt] {
  var prompts = [Prompt()]
  for line in String(decoding: readBytes(path), as: UTF8.self).split(separator: "\n") {
    let words = line.split(separator: " ").map { word in String(word) }
    let numbers = words.dropFirst().map { word in Double(word) ?? 0 }
    switch words[0] {
    case "next":
      prompts.append(Prompt())
    case "p":
      let label = try PointLabel(code: Int(numbers[2]))
      prompts[prompts.count - 1].points.append(Point(x: numbers[0], y: numbers[1], label: label))
    case "b":
      prompts[prompts.count - 1].box = Box(x0: numbers[0], y0: numbers[1], x1: numbers[2], y1: numbers[3])
    default:
      break
    }
  }
  return prompts
}

func drive(_ words: [String]) throws {
  if words[0] == "best" {
    print(try best(readFloats(words[2]), of: offered(Int(words[1]) ?? 0)))
    return
  }
  let size = Size(height: Int(words[1]) ?? 0, width: Int(words[2]) ?? 0)
  switch words[0] {
  case "encode":
    for tensor in try encoderInputs(Picture(rgb: readBytes(words[3]), size: size)) {
      try write(words[4], tensor: tensor)
    }
  case "decode":
    let matrix = words[4] == "-" ? [] : try positionMatrix(readBytes(words[4]))
    let mask = words[5] == "-" ? [] : readFloats(words[5])
    let prompts = try readPrompts(words[3])
    for tensor in try decoderInputs(prompts, original: size, matrix: matrix, maskInput: mask) {
      try write(words[6], tensor: tensor)
    }
  default:
    let logits = readFloats(words[3])
    let large = try upscaled(logits, original: size)
    try write("\(words[4])/upscaled.bin", floats: large)
    try write("\(words[4])/thresholded.bin", bytes: thresholded(large))
    try write("\(words[4])/stability.bin", floats: [stabilityScore(logits)])
  }
}
